"""A manifest in Parquet: the keys of the JSON lines manifest as columns; paths relative to the file's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from slimtts.data.manifest import AudioEntry, RowIds, audio_entry, check_codes, check_sound
from slimtts.errors import InvalidInputError
from slimtts.outside_files import check_expansion, check_regular
from slimtts.sandbox import Answer, Refusal, shared_sandbox

REQUIRED = ("id", "text", "voice")
NEXT = "write it again"
PARSERS = "slimtts.data.table_parsing"


def read_parquet_manifest(path: Path, num_codes: int) -> list[AudioEntry]:
    """Every row, checked as a line of a manifest.jsonl is; null means absent.

    Raises:
        InvalidInputError: the file or a row is bad, a column is missing or unknown, or a path leaves the folder.
    """
    entries = list(_entries(path, num_codes))
    check_sound(path, entries)
    return entries


def _entries(path: Path, num_codes: int) -> Iterator[AudioEntry]:
    size = check_regular(path, str(path), "a complete Parquet file", NEXT)
    known = [field.name for field in fields(AudioEntry)]
    ids = RowIds("row")

    def answer(start: int, with_rows: bool) -> Answer:
        arguments = {"path": str(path.absolute()), "start": start, "with_rows": with_rows}
        try:
            return shared_sandbox(PARSERS).call("parquet_rows", arguments)
        except Refusal as refusal:
            raise InvalidInputError(str(path), refusal.observed, "a complete Parquet file", NEXT) from None

    _check_columns(path, [str(name) for name in answer(0, with_rows=False).values["names"]], known)
    number = unpacked_bytes = 0
    while rows := (block := answer(number, with_rows=True)).values["rows"]:
        unpacked_bytes += block.json_bytes
        check_expansion(unpacked_bytes, size, str(path), NEXT)
        for values in rows:
            number += 1
            where = f"{path.name} row {number}"
            entry = audio_entry(values, where)
            ids.add(entry.id, number, where)
            if entry.codes is not None:
                check_codes(f"{where}, utterance '{entry.id}'", entry.codes, num_codes)
            yield entry


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
    if len(set(found)) < len(found):
        raise InvalidInputError(str(path), f"columns {', '.join(found)}", "each column once", "drop one of them")
