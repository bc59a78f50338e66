"""A dataset that `datasets.save_to_disk` wrote, read from its Arrow files without the datasets package.

Columns: `text`; `audio`, a struct of {bytes, path} as the Audio feature stores it, or of {array, sampling_rate}, or a
path below the folder; `id` and `speaker` where there are. Splits named train, validation and test are kept.
Format: datasets 5.2, `Dataset.save_to_disk`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slimtts.data.audio import AudioHeader, check_duration, mono, read_audio, read_header
from slimtts.data.manifest import AudioEntry, audio_entry, audio_path
from slimtts.data.speech_source import FileRecording, Recording
from slimtts.errors import InvalidInputError

STATE, SPLITS_FILE = "state.json", "dataset_dict.json"
SPLIT_OF = {"train": "train", "validation": "selection", "test": "test"}
ANYBODY = "unnamed"  # the voice of rows without a speaker
NEXT = "write the dataset again with save_to_disk"


@dataclass(frozen=True)
class BytesRecording:
    """A whole audio file inside a table's row."""

    utterance_id: str
    scalar: Any  # pyarrow binary, not copied before it is read

    def header(self) -> AudioHeader:
        """As the file says."""
        return read_header(self.scalar.as_py(), None, self.utterance_id)

    def read(self) -> tuple[torch.Tensor, int]:
        """Mono float [N] and its rate in Hz."""
        return read_audio(self.scalar.as_py(), None, self.utterance_id)

    def sha256(self) -> str:
        """Of the file's bytes."""
        return hashlib.sha256(self.scalar.as_buffer()).hexdigest()


@dataclass(frozen=True)
class ArrayRecording:
    """Mono samples inside a table's row."""

    utterance_id: str
    values: Any  # pyarrow floats, not copied before they are read
    sample_rate_hz: int

    def header(self) -> AudioHeader:
        """From the number of samples."""
        duration_s = len(self.values) / self.sample_rate_hz
        check_duration(duration_s, f"utterance '{self.utterance_id}', audio.array")
        return AudioHeader(self.sample_rate_hz, duration_s)

    def read(self) -> tuple[torch.Tensor, int]:
        """Mono float [N] and its rate in Hz."""
        samples = self._samples().astype(np.float32)
        return mono(samples[:, None], f"utterance '{self.utterance_id}', audio.array"), self.sample_rate_hz

    def sha256(self) -> str:
        """Of samples, their type and their rate."""
        samples = self._samples()
        digest = hashlib.sha256(f"{samples.dtype} {self.sample_rate_hz}".encode())
        digest.update(samples.tobytes())
        return digest.hexdigest()

    def _samples(self) -> np.ndarray:
        samples: np.ndarray = self.values.to_numpy(zero_copy_only=False)
        return samples


def is_hf_dataset(folder: Path) -> bool:
    """Has the folder a dataset's state, or a list of splits?"""
    return (folder / STATE).is_file() or (folder / SPLITS_FILE).is_file()


def read_hf_dataset(folder: Path) -> Iterator[tuple[AudioEntry, Recording]]:
    """Every row with its sound; files stay mapped, not loaded.

    Raises:
        InvalidInputError: files are missing or damaged, a column is missing, or a row is bad; names the row.
    """
    if not (folder / SPLITS_FILE).is_file():
        yield from _rows(folder, folder, None)
        return
    names = _json(folder / SPLITS_FILE).get("splits")
    if not isinstance(names, list) or (set(names) != {"train"} and set(names) != set(SPLIT_OF)):
        raise InvalidInputError(
            str(folder / SPLITS_FILE),
            f"splits {names}",
            f"{', '.join(SPLIT_OF)} together, or train alone",
            "rename the splits, or name the folder of one of them",
        )
    for name in names:
        yield from _rows(folder, folder / name, SPLIT_OF[name] if len(names) > 1 else None)


def _rows(root: Path, folder: Path, split: str | None) -> Iterator[tuple[AudioEntry, Recording]]:
    table = _table(folder)
    missing = [name for name in ("text", "audio") if name not in table.column_names]
    if missing:
        raise InvalidInputError(
            str(folder),
            f"no column {', '.join(missing)} among {', '.join(table.column_names)}",
            "text, audio, and id and speaker where there are",
            "rename the columns",
        )
    columns = {name: table[name] for name in ("id", "text", "speaker", "audio") if name in table.column_names}
    for number in range(table.num_rows):
        cells = {name: column[number] for name, column in columns.items()}
        plain = {name: cell.as_py() for name, cell in cells.items() if name != "audio"}
        plain = {name: value for name, value in plain.items() if value is not None}
        where = f"{folder.name} row {number}"
        values = {
            "id": str(plain.get("id", f"{split or 'row'}-{number:08d}")),
            "text": plain.get("text"),
            "voice": str(plain.get("speaker", ANYBODY)),  # often a number
            "split": split,
        }
        entry = audio_entry(values, where)
        yield entry, _recording(entry.id, cells["audio"], root, f"{where}, utterance '{entry.id}'")


def _recording(utterance_id: str, audio: Any, root: Path, where: str) -> Recording:
    import pyarrow

    parts = {name: audio[name] for name in audio.type.names} if pyarrow.types.is_struct(audio.type) else {}
    found = ", ".join(parts) or str(audio.type)
    if pyarrow.types.is_string(audio.type) or pyarrow.types.is_large_string(audio.type):
        parts = {"path": audio}
    held = {name for name, cell in parts.items() if cell.is_valid}
    if "bytes" in held:
        return BytesRecording(utterance_id, parts["bytes"])
    if {"array", "sampling_rate"} <= held:
        values, rate_hz = parts["array"].values, parts["sampling_rate"].as_py()
        if not pyarrow.types.is_floating(values.type) or values.null_count or not isinstance(rate_hz, int):
            raise InvalidInputError(
                where, f"array of {values.type}", "mono floating-point samples in -1..1", "convert the column"
            )
        if rate_hz < 1:
            raise InvalidInputError(where, f"sampling_rate {rate_hz}", "at least 1 Hz", "correct the column")
        return ArrayRecording(utterance_id, values, rate_hz)
    if "path" in held:
        path = parts["path"].as_py()
        if Path(path).is_relative_to(root.resolve()):
            path = str(Path(path).relative_to(root.resolve()))
        return FileRecording(utterance_id, audio_path(root, path, where))
    observed = f"audio as {found}" if audio.is_valid and not (parts and not held) else "no audio"
    raise InvalidInputError(where, observed, "{bytes, path}, {array, sampling_rate} or a path", "mend the row")


def _table(folder: Path) -> Any:
    """All Arrow files of a dataset as one mapped table."""
    import pyarrow

    try:
        names = [part["filename"] for part in _json(folder / STATE)["_data_files"]]
        paths = [audio_path(folder, name, f"{folder / STATE}, file '{name}'") for name in names]
        tables = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all() for path in paths]
        return pyarrow.concat_tables(tables)
    except (OSError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise InvalidInputError(str(folder), repr(error), "a complete dataset with its Arrow files", NEXT) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(str(path), error, "a JSON object", NEXT) from None
    return values if isinstance(values, dict) else {}
