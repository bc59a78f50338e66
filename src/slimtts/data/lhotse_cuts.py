"""Lhotse's cuts.jsonl or cuts.jsonl.gz, read without the lhotse package.

Of the format: MonoCut with one supervision that holds text and speaker, over a recording in one single-channel file.
Everything else (MultiCut, MixedCut, features only, commands, URLs, archives, transforms) is refused by id.
Format: lhotse 1.33, `MonoCut.to_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimtts.data.manifest import AudioEntry, audio_entry, audio_path
from slimtts.data.sound_files import SEGMENT_SLACK_S, Segment
from slimtts.data.speech_source import FileRecording
from slimtts.errors import InvalidInputError
from slimtts.outside_files import numbered_lines, parse_json

NEXT = "convert it with lhotse, or remove the cut"
Seconds = Annotated[float, Field(allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """Other keys of Lhotse do not matter here."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _AudioSource(_Part):
    type: str
    channels: list[int]
    source: str


class _Recording(_Part):
    sources: list[_AudioSource]
    sampling_rate: Annotated[int, Field(gt=0)]
    duration: PositiveSeconds
    transforms: list[Any] | None = None


class _Supervision(_Part):
    start: Seconds
    duration: PositiveSeconds
    text: str | None = None
    speaker: str | None = None


class _Cut(_Part):
    id: str
    start: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    duration: PositiveSeconds
    supervisions: list[_Supervision]
    recording: _Recording | None = None


def read_cuts(path: Path) -> Iterator[tuple[AudioEntry, FileRecording]]:
    """Every cut with its part of a file below the manifest's folder.

    Raises:
        InvalidInputError: the file is bad, or a cut is; names line and id.
    """
    for number, line in numbered_lines(path, str(path), "JSON lines, plain or packed by gzip", "write it again"):
        where = f"{path.name} line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            observed = f"no JSON: {error}"[:200]
            raise InvalidInputError(where, observed, "one cut as a JSON object a line", "mend this line") from None
        kind = row.get("type") if isinstance(row, dict) else type(row).__name__
        if isinstance(row, dict) and "id" in row:
            where += f", cut '{row['id']}'"
        if kind != "MonoCut":
            raise InvalidInputError(where, f"type {kind}", "MonoCut", NEXT)
        try:
            cut = _Cut.model_validate(row)
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(part) for part in problem["loc"])
            raise InvalidInputError(where, f"bad value of {key}", problem["msg"], NEXT) from None
        yield _checked(cut, path, where)


def _checked(cut: _Cut, path: Path, where: str) -> tuple[AudioEntry, FileRecording]:
    if cut.recording is None:
        raise InvalidInputError(where, "no recording (features only)", "a recording in a file", NEXT)
    recording = cut.recording
    types = sorted({source.type for source in recording.sources})
    if types != ["file"]:
        raise InvalidInputError(where, f"audio source {', '.join(types) or 'none'}", "file", NEXT)
    channels = sum(len(source.channels) for source in recording.sources)
    if channels != 1:
        raise InvalidInputError(where, f"{channels} channels", "a recording with one channel", NEXT)
    if recording.transforms:
        raise InvalidInputError(where, "a recording with transforms", "stored audio as it is", NEXT)
    if len(cut.supervisions) != 1:
        raise InvalidInputError(
            where, f"{len(cut.supervisions)} supervisions", "exactly one", "use CutSet.trim_to_supervisions"
        )
    spoken = cut.supervisions[0]
    if spoken.start < -SEGMENT_SLACK_S or spoken.start + spoken.duration > cut.duration + SEGMENT_SLACK_S:
        raise InvalidInputError(
            where, "a supervision that reaches beyond its cut", "text that is all heard", "widen the cut"
        )
    # Lhotse stores what it was given, often absolute: within the folder that is as good as relative.
    audio, folder = recording.sources[0].source, path.parent.resolve()
    if Path(audio).is_relative_to(folder):
        audio = str(Path(audio).relative_to(folder))
    file = audio_path(folder, audio, where)
    values = {"id": cut.id, "text": spoken.text, "voice": spoken.speaker, "audio": audio}
    entry = audio_entry({**values, "sample_rate_hz": recording.sampling_rate}, where)
    whole = cut.start == 0 and abs(cut.duration - recording.duration) < 1 / recording.sampling_rate
    segment = None if whole else Segment(cut.start, cut.duration)
    return entry, FileRecording(entry.id, file, recording.sampling_rate, segment)
