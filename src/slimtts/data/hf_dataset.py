"""A dataset that `datasets.save_to_disk` wrote, read from its Arrow files without the datasets package.

Columns: `text`; `audio`, a struct of {bytes, path} as the Audio feature stores it, or of {array, sampling_rate}, or a
path below the folder; `id` and `speaker` where there are. Splits named train, validation and test are kept.
Format: datasets 5.2, `Dataset.save_to_disk`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from slimtts.data.manifest import AudioEntry, audio_entry, audio_path
from slimtts.data.parquet_manifest import PARSERS
from slimtts.data.sound_files import (
    MAX_CHANNELS,
    MAX_SAMPLES,
    AudioHeader,
    check_duration,
    check_rate,
    checked_header,
    checked_samples,
    refused,
)
from slimtts.data.speech_source import FileRecording, Recording
from slimtts.errors import InvalidInputError
from slimtts.outside_files import check_expansion, check_regular, read_text
from slimtts.sandbox import Answer, Refusal, shared_sandbox

STATE, SPLITS_FILE = "state.json", "dataset_dict.json"
SPLIT_OF = {"train": "train", "validation": "selection", "test": "test"}
ANYBODY = "unnamed"  # the voice of rows without a speaker
NEXT = "write the dataset again with save_to_disk"
SOUNDS = "{bytes, path}, {array, sampling_rate} or a path"


class ArrowFiles:
    """The Arrow files of a dataset, read by a child process."""

    def __init__(self, folder: Path, files: list[Path]) -> None:
        self.folder = folder
        self.size_bytes = sum(check_regular(path, str(path), "an Arrow file", NEXT) for path in files)
        self._files = [str(path) for path in files]

    def ask(self, function: str, **arguments: Any) -> Answer:
        """What a function of `slimtts.data.table_parsing` says of these files.

        Raises:
            Refusal: the bytes are bad.
        """
        return shared_sandbox(PARSERS).call(function, {"files": self._files, **arguments})

    def table(self, function: str, **arguments: Any) -> Answer:
        """As `ask`, where a refusal stops everything.

        Raises:
            InvalidInputError: the bytes are bad.
        """
        try:
            return self.ask(function, **arguments)
        except Refusal as refusal:
            allowed = "a complete dataset with its Arrow files"
            raise InvalidInputError(str(self.folder), refusal.observed, allowed, NEXT) from None


@dataclass(frozen=True)
class RowRecording:
    """The sound in a table's row: a whole audio file; or mono samples, whose header is known from the row."""

    utterance_id: str
    arrow: ArrowFiles
    row: int
    array_header: AudioHeader | None = None
    file_facts: dict[str, Any] | None = None

    def header(self) -> AudioHeader:
        """As the file says, or from the number of samples."""
        return self._header

    @cached_property
    def _header(self) -> AudioHeader:
        if self.array_header is None:
            return checked_header(self.file_facts or self._ask("cell_header").values, None, self._what)
        check_rate(self.array_header.sample_rate_hz, self._what)
        check_duration(self.array_header.duration_s, self._what)
        return self.array_header

    def read(self) -> tuple[torch.Tensor, int]:
        """Mono float [N] and its rate in Hz."""
        limits = {"max_samples": MAX_SAMPLES, "max_channels": MAX_CHANNELS}
        answer = self._ask("cell_samples", is_speech=True, start_s=0.0, duration_s=None, **limits)
        samples, rate_hz = checked_samples(answer, self._header, self._what, is_segment=False)
        return torch.from_numpy(samples), rate_hz

    def sha256(self) -> str:
        """Of the file's bytes; or of samples, their type and their rate."""
        return str(self._ask("cell_sha256").values["sha256"])

    @property
    def _what(self) -> str:
        where = "audio in the data" if self.array_header is None else "audio.array"
        return f"utterance '{self.utterance_id}', {where}"

    def _ask(self, function: str, **arguments: Any) -> Answer:
        try:
            return self.arrow.ask(function, row=self.row, **arguments)
        except Refusal as refusal:
            raise refused(refusal, self._what) from None


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
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or (set(names) != {"train"} and set(names) != set(SPLIT_OF))
    ):
        raise InvalidInputError(
            str(folder / SPLITS_FILE),
            f"splits {names}",
            f"{', '.join(SPLIT_OF)} together, or train alone",
            "rename the splits, or name the folder of one of them",
        )
    for name in names:
        yield from _rows(folder, folder / name, SPLIT_OF[name] if len(names) > 1 else None)


def _rows(root: Path, folder: Path, split: str | None) -> Iterator[tuple[AudioEntry, Recording]]:
    arrow = ArrowFiles(folder, _arrow_paths(folder))
    facts = arrow.table("dataset_facts").values
    names, count = [str(name) for name in facts["names"]], int(facts["rows"])
    missing = [name for name in ("text", "audio") if name not in names]
    if missing:
        raise InvalidInputError(
            str(folder),
            f"no column {', '.join(missing)} among {', '.join(names)}",
            "text, audio, and id and speaker where there are",
            "rename the columns",
        )
    number = unpacked_bytes = 0
    while number < count:
        block = _block(arrow, number)
        unpacked_bytes += block.json_bytes
        check_expansion(unpacked_bytes, arrow.size_bytes, str(folder), NEXT)
        if not block.values["rows"]:
            raise InvalidInputError(str(folder), f"{number} rows of {count}", "complete Arrow files", NEXT)
        for row in block.values["rows"]:
            where = f"{folder.name} row {number}"
            values = {
                "id": _name(row.get("id"), f"{split or 'row'}-{number:08d}"),
                "text": row.get("text"),
                "voice": _name(row.get("speaker"), ANYBODY),
                "split": split,
            }
            entry = audio_entry(values, where)
            yield entry, _recording(entry.id, arrow, number, row["audio"], root, f"{where}, utterance '{entry.id}'")
            number += 1


def _block(arrow: ArrowFiles, start: int) -> Answer:
    """Rows with the headers of their audio; without, where one of them ends the child: each is asked about alone."""
    try:
        return arrow.ask("dataset_rows", start=start, with_headers=True)
    except Refusal:
        return arrow.table("dataset_rows", start=start, with_headers=False)


def _name(value: Any, absent: str) -> Any:
    """An id or a speaker as text: whole numbers are often names; every other type is refused with the row."""
    if value is None:
        return absent
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _recording(
    utterance_id: str, arrow: ArrowFiles, row: int, sound: dict[str, Any], root: Path, where: str
) -> Recording:
    if sound["kind"] == "bytes":
        return RowRecording(utterance_id, arrow, row, file_facts=sound.get("header"))
    if sound["kind"] == "array":
        frames, rate_hz = int(sound["frames"]), int(sound["sample_rate_hz"])
        if rate_hz < 1:
            raise InvalidInputError(where, f"sampling_rate {rate_hz}", "at least 1 Hz", "correct the column")
        return RowRecording(utterance_id, arrow, row, AudioHeader(rate_hz, frames / rate_hz))
    if sound["kind"] == "path":
        path = sound["path"]
        if not isinstance(path, str):
            raise InvalidInputError(where, f"a path {path}", SOUNDS, "mend the row")
        if Path(path).is_relative_to(root.resolve()):
            path = str(Path(path).relative_to(root.resolve()))
        return FileRecording(utterance_id, audio_path(root, path, where))
    raise InvalidInputError(where, sound["observed"], sound.get("allowed", SOUNDS), "mend the row")


def _arrow_paths(folder: Path) -> list[Path]:
    """The files that a dataset's state names, all below its folder."""
    parts = _json(folder / STATE).get("_data_files")
    entries = parts if isinstance(parts, list) else []
    named = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    names = [name for name in named if isinstance(name, str)]
    if not names or len(names) < len(entries):
        raise InvalidInputError(str(folder / STATE), "no list of Arrow files", "_data_files with a filename each", NEXT)
    return [audio_path(folder, str(name), f"{folder / STATE}, file '{name}'") for name in names]


def _json(path: Path) -> dict[str, Any]:
    text = read_text(path, str(path), "a JSON object", NEXT)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(str(path), error, "a JSON object", NEXT) from None
    return values if isinstance(values, dict) else {}
