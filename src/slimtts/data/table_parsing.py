"""Parquet and Arrow tables by pyarrow, inside a `slimtts.sandbox` child: rows as JSON values, sound by row number."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet, types

from slimtts.data.sound_content import content_flaw
from slimtts.data.sound_decoding import header_of, sound_samples
from slimtts.sandbox import Buffer, Refusal

ROWS_AT_ONCE = 256
COLUMNS = ("id", "text", "speaker", "audio")  # of a dataset


def parquet_rows(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """Without `with_rows`, opens a file and names its columns; with it, the rows after `start`, none at the end."""
    global _opened
    path, start = arguments["path"], arguments["start"]
    if not arguments["with_rows"]:
        file = parquet.ParquetFile(path)
        _opened = _OpenedParquet(path, 0, file.iter_batches(ROWS_AT_ONCE, use_threads=False))
        return {"names": file.schema_arrow.names}, b""
    if _opened is None or (_opened.path, _opened.read) != (path, start):
        raise Refusal(f"its reader was lost at row {start}")
    batch = next(_opened.batches, None)
    rows = [] if batch is None else [plain(row) for row in batch.to_pylist()]
    _opened.read += len(rows)
    return {"rows": rows}, b""


@dataclass
class _OpenedParquet:
    """A file whose rows are asked for one block after the other."""

    path: str
    read: int
    batches: Iterator[Any]


_opened: _OpenedParquet | None = None


def dataset_facts(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """Names of the columns and number of rows of Arrow streams, one after the other."""
    table = _table(arguments)
    return {"names": table.column_names, "rows": table.num_rows}, b""


def dataset_rows(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """ROWS_AT_ONCE rows from `start` on: id, text and speaker as JSON values, what kind of sound they hold, and, with
    `with_headers`, `header_of` the files among it."""
    table = _table(arguments)
    part = table.select([name for name in COLUMNS if name in table.column_names]).slice(
        arguments["start"], ROWS_AT_ONCE
    )
    values = {name: [plain(v) for v in part[name].to_pylist()] for name in part.column_names if name != "audio"}
    rows = [{name: column[i] for name, column in values.items()} for i in range(part.num_rows)]
    for row, audio in zip(rows, part["audio"], strict=True):
        row["audio"] = _sound_kind(audio)
        if arguments["with_headers"] and row["audio"]["kind"] == "bytes":
            row["audio"]["header"] = header_of(io.BytesIO(audio["bytes"].as_py()))
    return {"rows": rows}, b""


def cell_header(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """`sound_header` of the file in a row."""
    audio = _table(arguments)["audio"][arguments["row"]]
    return header_of(io.BytesIO(audio["bytes"].as_py())), b""


def cell_samples(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """Mono float32 [N] of a row, as `sound_samples` gives them."""
    audio = _table(arguments)["audio"][arguments["row"]]
    if _sound_kind(audio)["kind"] == "bytes":
        return sound_samples({**arguments, "path": None}, audio["bytes"].as_py())
    values = _array_of(arguments)
    if len(values) > arguments["max_samples"]:
        raise Refusal(f"{len(values)} samples", f"at most {arguments['max_samples']}", "cut it", "too_long")
    samples = values.astype(np.float32)
    rate_hz = audio["sampling_rate"].as_py()
    flaw = content_flaw(samples[:, None], rate_hz)
    header = {"sample_rate_hz": rate_hz, "channels": 1, "frames": len(samples)}
    return {**header, "flaw": vars(flaw) if flaw is not None else None}, np.ascontiguousarray(samples).data.cast("B")


def cell_sha256(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """Of a row's file; or of its samples, their type and their rate."""
    audio = _table(arguments)["audio"][arguments["row"]]
    if _sound_kind(audio)["kind"] == "bytes":
        return {"sha256": hashlib.sha256(audio["bytes"].as_buffer()).hexdigest()}, b""
    samples = _array_of(arguments)
    digest = hashlib.sha256(f"{samples.dtype} {audio['sampling_rate'].as_py()}".encode())
    digest.update(np.ascontiguousarray(samples).data)
    return {"sha256": digest.hexdigest()}, b""


def plain(value: Any) -> Any:
    """A cell as JSON has it. Text that a writer stored as bytes is text; what JSON has not becomes an object that
    names its type, which no field of a manifest takes."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else {"float": str(value)}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": value[:16].hex()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return {type(value).__name__: str(value)}


def _table(arguments: dict[str, Any]) -> Any:
    files = tuple(arguments["files"])
    return _mapped(files, tuple(Path(path).stat().st_mtime_ns for path in files))


@lru_cache(maxsize=4)
def _mapped(files: tuple[str, ...], _stamps: tuple[int, ...]) -> Any:
    """All Arrow streams as one table, not loaded, with its offsets checked."""
    tables = []
    for path in files:
        try:
            tables.append(pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all())
        except (OSError, pyarrow.ArrowException) as error:
            raise Refusal(f"{Path(path).name}: {error}") from None
    table = pyarrow.concat_tables(tables)
    table.validate()
    return table


def _array_of(arguments: dict[str, Any]) -> np.ndarray:
    values = _table(arguments)["audio"][arguments["row"]]["array"].values
    samples: np.ndarray = values.to_numpy(zero_copy_only=False)
    return samples


def _sound_kind(audio: Any) -> dict[str, Any]:
    """{"kind": "bytes"}, "array" with frames and sample_rate_hz, "path" with it, or "none" with what was observed."""
    parts = {name: audio[name] for name in audio.type.names} if types.is_struct(audio.type) and audio.is_valid else {}
    names = audio.type.names if types.is_struct(audio.type) else [str(audio.type)]
    if types.is_string(audio.type) or types.is_large_string(audio.type):
        parts = {"path": audio}
    held = {name for name, cell in parts.items() if cell.is_valid}
    if "bytes" in held:
        return {"kind": "bytes"}
    if {"array", "sampling_rate"} <= held:
        return _array_kind(parts["array"].values, parts["sampling_rate"].as_py())
    if "path" in held:
        return {"kind": "path", "path": plain(parts["path"].as_py())}
    is_empty = not audio.is_valid or (parts and not held)
    return {"kind": "none", "observed": "no audio" if is_empty else f"audio as {', '.join(names)}"}


def _array_kind(values: Any, rate_hz: Any) -> dict[str, Any]:
    if not types.is_floating(values.type) or values.null_count or not isinstance(rate_hz, int):
        allowed = "mono floating-point samples in -1..1"
        return {"kind": "none", "observed": f"array of {values.type}", "allowed": allowed}
    return {"kind": "array", "frames": len(values), "sample_rate_hz": rate_hz}
