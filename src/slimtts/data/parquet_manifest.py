"""A manifest in Parquet: the keys of the JSON lines manifest as columns; paths relative to the file's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from slimtts.data.manifest import AudioEntry, audio_entry, check_codes, check_sound
from slimtts.errors import InvalidInputError

REQUIRED = ("id", "text", "voice")
ROWS_AT_ONCE = 4096


def read_parquet_manifest(path: Path, num_codes: int) -> list[AudioEntry]:
    """Every row, checked as a line of a manifest.jsonl is; null means absent.

    Raises:
        InvalidInputError: the file or a row is bad, a column is missing or unknown, or a path leaves the folder.
    """
    entries = list(_entries(path, num_codes))
    check_sound(path, entries)
    return entries


def _entries(path: Path, num_codes: int) -> Iterator[AudioEntry]:
    import pyarrow
    from pyarrow import parquet

    known = [field.name for field in fields(AudioEntry)]
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, known)
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    where = f"{path.name} row {number}"
                    entry = audio_entry(values, where)
                    if entry.codes is not None:
                        check_codes(f"{where}, utterance '{entry.id}'", entry.codes, num_codes)
                    yield entry
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidInputError(str(path), error, "a complete Parquet file", "write it again") from None


def _check_columns(path: Path, found: list[str], known: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in found]
    if missing or not {"audio", "codes"} & set(found):
        missing = missing or ["audio or codes"]
        raise InvalidInputError(
            str(path), f"no column {', '.join(missing)} among {', '.join(found)}", ", ".join(known), "add the column"
        )
    unknown = [name for name in found if name not in known]
    if unknown:
        raise InvalidInputError(
            str(path), f"unknown column {', '.join(unknown)}", ", ".join(known), "rename or drop the column"
        )
