"""Utterances on disk: JSON lines that are checked row by row when they are read.

Two kinds. Our own files hold an `Utterance` a line, with its codes. A manifest from outside holds an `AudioEntry` a
line: the path of an audio file below the manifest's folder, or codes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from slimtts.data.spoken_text import text_fault
from slimtts.errors import InvalidInputError
from slimtts.outside_files import numbered_lines, parse_json
from slimtts.storage import atomic_path

SPLITS = ("train", "selection", "test")
SplitName = Literal["train", "selection", "test"]
MEND = "mend or remove this line"
SPOKEN = ("text", "prompt_text")


def _speakable(text: str) -> str:
    fault = text_fault(text)
    if fault is not None:
        raise ValueError(fault.allowed)
    return text


def _file_name(name: str) -> str:
    if len(name.encode()) > LONGEST_ID_BYTES:
        raise ValueError(f"at most {LONGEST_ID_BYTES} bytes of UTF-8")
    return name


def _printable(voice: str) -> str:
    if not voice.isprintable():
        raise ValueError("printable characters")
    return voice


LONGEST_ID = 120
LONGEST_ID_BYTES = 200  # file systems take 255, and names are put around it
LONGEST_TEXT = 10_000  # characters: what is said in MAX_AUDIO_S, and far more than a model speaks at once
# Ids become file names.
UtteranceId = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=LONGEST_ID), AfterValidator(_file_name)]
SpokenText = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_speakable)]
Voice = Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=200), AfterValidator(_printable)]
Codes = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Utterance:
    """Something said: text, voice, and its speech codes."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: UtteranceId
    text: SpokenText
    voice: Voice
    codes: Codes
    duration_s: Seconds


@dataclass(frozen=True)
class AudioEntry:
    """A line of a manifest from outside: exactly one of `audio` (relative to the manifest's folder) and `codes`."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: UtteranceId
    text: SpokenText
    voice: Voice
    audio: str | None = None
    sample_rate_hz: Annotated[int, Field(gt=0)] | None = None
    codes: Codes | None = None
    split: SplitName | None = None


@dataclass(frozen=True)
class CorpusRow:
    """A row of a corpus whose codes lie in arrays."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)

    id: UtteranceId
    text: SpokenText
    voice: Voice
    split: SplitName | None = None


@dataclass(frozen=True)
class PromptedEntry:
    """A line of a manifest to be judged on: what to say after which prompt; `audio` or `codes` are the original's."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: UtteranceId
    text: SpokenText
    prompt_text: SpokenText
    prompt_audio: str | None = None
    prompt_codes: Codes | None = None
    voice: Voice | None = None
    audio: str | None = None
    codes: Codes | None = None


Row = TypeVar("Row", Utterance, AudioEntry, PromptedEntry)
_AUDIO_ENTRY, _CORPUS_ROW = TypeAdapter(AudioEntry), TypeAdapter(CorpusRow)


def _shorten(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _line_complaint(where: str, line: str, kind: type[Any], error: ValidationError) -> InvalidInputError:
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return InvalidInputError(where, f"{problem['msg']}: {_shorten(line)}", "one JSON object a line", MEND)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    return _complaint(where, row, kind, error)


def _complaint(where: str, row: object, kind: type[Any], error: ValidationError) -> InvalidInputError:
    """The first problem of a row, with the utterance's id if the row gives one."""
    problem = error.errors()[0]
    if isinstance(row, dict) and "id" in row:
        where = f"{where}, utterance {_shorten(row['id'])}"
    if problem["type"] == "json_invalid":  # half of a pair of UTF-16: no text can hold it
        return InvalidInputError(where, problem["msg"], "text in Unicode", MEND)
    keys = ", ".join(field.name for field in fields(kind))
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return InvalidInputError(where, f"no key '{key}'", keys, MEND)
    if problem["type"] == "unexpected_keyword_argument":
        return InvalidInputError(where, f"unknown key '{key}'", keys, MEND)
    fault = text_fault(problem["input"]) if problem["type"] == "value_error" and key in SPOKEN else None
    if fault is not None:
        return fault.error(f"{where}, {key}")
    allowed = problem["msg"].removeprefix("Value error, ")
    return InvalidInputError(where, f"{key} = {_shorten(problem['input'])}", allowed, MEND)


def check_codes(what: str, codes: Sequence[int], num_codes: int) -> None:
    """Refuses codes that the codec does not know.

    Raises:
        InvalidInputError: a code is outside 0..num_codes-1.
    """
    worst = max(codes) if min(codes) >= 0 else min(codes)
    if not 0 <= worst < num_codes:
        raise InvalidInputError(what, f"code {worst}", f"0..{num_codes - 1}", "encode again with this teacher's codec")


class RowIds:
    """The ids of the rows so far, each with its line or row number."""

    def __init__(self, unit: str) -> None:
        self._unit, self._first = unit, dict[str, int]()

    def add(self, row_id: str, number: int, where: str) -> None:
        """Takes a row's id.

        Raises:
            InvalidInputError: another row has it.
        """
        if row_id in self._first:
            observed = f"id also in {self._unit} {self._first[row_id]}"
            raise InvalidInputError(f"{where}, utterance '{row_id}'", observed, "unique ids", "rename one of them")
        self._first[row_id] = number


def _read_rows(path: Path, kind: type[Row], num_codes: int | None) -> list[Row]:
    adapter: TypeAdapter[Row] = TypeAdapter(kind)
    rows: list[Row] = []
    ids = RowIds("line")
    for number, line in numbered_lines(path, str(path), "a .jsonl manifest", "correct the path or write it again"):
        where = f"{path.name} line {number}"
        try:
            row = adapter.validate_json(line)
            parse_json(line)
        except ValidationError as error:
            raise _line_complaint(where, line, kind, error) from None
        except ValueError as error:
            raise InvalidInputError(where, error, "each key once", MEND) from None
        ids.add(row.id, number, where)
        if num_codes is not None and row.codes is not None:
            check_codes(f"{where}, utterance '{row.id}'", row.codes, num_codes)
        rows.append(row)
    return rows


def read_utterances(path: Path, num_codes: int | None = None) -> list[Utterance]:
    """Reads what `write_utterances` wrote; `num_codes` of the codec, when known, bounds the codes.

    Raises:
        InvalidInputError: the file or one of its lines is bad; names line, id, observed and allowed.
    """
    return _read_rows(path, Utterance, num_codes)


def read_split(folder: Path, split: str) -> list[Utterance]:
    """A split that subset_data wrote into `folder`.

    Raises:
        InvalidInputError: as `read_utterances`, or it holds no row.
    """
    path = folder / f"{split}.jsonl"
    rows = read_utterances(path)
    if not rows:
        raise InvalidInputError(str(path), "no rows", "at least one utterance", "run subset_data again")
    return rows


def write_utterances(path: Path, rows: Iterable[Utterance]) -> None:
    """Writes JSON lines, complete or not at all."""
    with atomic_path(path) as tmp, tmp.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(row), ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)


def read_audio_manifest(path: Path, num_codes: int | None = None) -> list[AudioEntry]:
    """Reads a manifest from outside; audio files are located, not opened.

    Raises:
        InvalidInputError: the file or a line is bad, or a path leaves the manifest's folder.
    """
    entries = _read_rows(path, AudioEntry, num_codes)
    check_sound(path, entries)
    return entries


def read_prompted_manifest(path: Path, num_codes: int | None = None) -> list[PromptedEntry]:
    """Reads a manifest to be judged on; audio files are not looked at.

    Raises:
        InvalidInputError: the file or a line is bad, a prompt is not exactly one of audio and codes, or an original
            is both.
    """
    entries = _read_rows(path, PromptedEntry, num_codes)
    for entry in entries:
        what = f"{path.name}, utterance '{entry.id}'"
        if (entry.prompt_audio is None) == (entry.prompt_codes is None):
            raise InvalidInputError(
                what, "a prompt of neither or both", "exactly one of prompt_audio, prompt_codes", MEND
            )
        if entry.audio is not None and entry.codes is not None:
            raise InvalidInputError(what, "both audio and codes", "at most one of them", MEND)
        if num_codes is not None and entry.prompt_codes is not None:
            check_codes(f"{what}, prompt", entry.prompt_codes, num_codes)
    return entries


def check_sound(manifest: Path, entries: Iterable[AudioEntry]) -> None:
    """Refuses rows without sound or with two kinds of it.

    Raises:
        InvalidInputError: neither or both of audio and codes, or a path leaves the manifest's folder.
    """
    for entry in entries:
        what = f"{manifest.name}, utterance '{entry.id}'"
        if (entry.audio is None) == (entry.codes is None):
            observed = "neither audio nor codes" if entry.audio is None else "both audio and codes"
            raise InvalidInputError(what, observed, "exactly one of them", MEND)
        if entry.audio is not None:
            audio_path(manifest.parent, entry.audio, what)


def audio_entry(values: Mapping[str, Any], where: str) -> AudioEntry:
    """A row from elsewhere than JSON lines, of values that JSON has, checked as a line is; absent ones are None.

    Raises:
        InvalidInputError: a value is bad; names `where`, the id, observed and allowed.
    """
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return _AUDIO_ENTRY.validate_json(json.dumps(given))
    except ValidationError as error:
        raise _complaint(where, given, AudioEntry, error) from None


def corpus_row(values: Any, where: str) -> CorpusRow:
    """A row of a token corpus, checked as a line of a manifest is.

    Raises:
        InvalidInputError: a value is bad; names `where`, the id, observed and allowed.
    """
    try:
        return _CORPUS_ROW.validate_json(json.dumps(values))
    except ValidationError as error:
        raise _complaint(where, values, CorpusRow, error) from None


def audio_path(folder: Path, audio: str, what: str) -> Path:
    """Absolute path of `audio`, symbolic links resolved, below `folder`.

    Raises:
        InvalidInputError: the path is absolute, leaves the folder, or cannot be resolved.
    """
    root = folder.resolve()
    try:
        resolved = (root / audio).resolve()
        inside = not Path(audio).is_absolute() and resolved != root and resolved.is_relative_to(root)
    except (ValueError, OSError, RuntimeError):  # a NUL byte, too long a name, a loop of links
        inside = False
    if not inside:
        raise InvalidInputError(
            what,
            f"audio = {_shorten(audio)}",
            "a relative path below the manifest's folder, with links followed",
            "move the file there",
        )
    return resolved


def data_sha256(folder: Path) -> str:
    """One hash of train.jsonl, selection.jsonl and test.jsonl: equal only when every split is equal."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(hashlib.sha256((folder / f"{split}.jsonl").read_bytes()).digest())
    return digest.hexdigest()
