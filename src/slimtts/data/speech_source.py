"""What every source of utterances offers: candidates that are cheap to list, and codes of those that were chosen."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from slimtts.data.audio import read_audio, resample
from slimtts.data.manifest import AudioEntry, audio_path
from slimtts.data.sound_files import AudioHeader, BadAudioError, Segment, header_facts, read_header
from slimtts.data.splits import Candidate
from slimtts.errors import InvalidInputError

HEADERS_AT_ONCE = 256


@dataclass(frozen=True)
class CodecFacts:
    """What a source needs to know of the teacher's codec; `encode` maps float [B, N] to int codes [B, F]."""

    sample_rate_hz: int
    frame_rate_hz: float
    num_codes: int
    encode: Callable[[torch.Tensor], torch.Tensor]


class Recording(Protocol):
    """Sound that is not codes yet. All three refuse what is no speech with `BadAudioError`."""

    def header(self) -> AudioHeader:
        """Length and rate, cheaply."""
        ...

    def read(self) -> tuple[torch.Tensor, int]:
        """Mono float [N] and its rate in Hz."""
        ...

    def sha256(self) -> str:
        """Hash of the stored bytes and of what is taken from them."""
        ...


@dataclass(frozen=True)
class FileRecording:
    """An audio file, or a segment of one."""

    utterance_id: str
    path: Path
    sample_rate_hz: int | None = None
    segment: Segment | None = None

    def header(self, facts: dict[str, Any] | None = None) -> AudioHeader:
        """As the file or the segment says; `facts` of `header_facts` spare a call."""
        return read_header(self.path, self.sample_rate_hz, self.utterance_id, self.segment, facts)

    def read(self) -> tuple[torch.Tensor, int]:
        """Mono float [N] and its rate in Hz."""
        return read_audio(self.path, self.sample_rate_hz, self.utterance_id, self.segment)

    def sha256(self) -> str:
        """Of the file's bytes and the segment."""
        try:
            with self.path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise BadAudioError(
                f"utterance '{self.utterance_id}', {self.path.name}",
                error.strerror,
                "a readable file",
                "restore it or remove the row",
                "missing",
            ) from None
        if self.segment is not None:
            digest.update(repr(self.segment).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SpeechSource:
    """All utterances, the codes of one of them by id, and what may be encoded beforehand.

    `recordings` holds the utterances that are sound; `codes_of` encodes them one at a time. `dropped` counts rows
    that cannot be used, by reason.
    """

    candidates: tuple[Candidate, ...]
    codes_of: Callable[[str], tuple[int, ...]]
    recordings: Mapping[str, Recording] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


def encode_alone(recording: Recording, codec: CodecFacts) -> tuple[int, ...]:
    """Codes of one recording.

    Raises:
        BadAudioError: the samples cannot be used.
    """
    wave, rate_hz = recording.read()
    codes = codec.encode(resample(wave, rate_hz, codec.sample_rate_hz).unsqueeze(0))
    return tuple(codes[0].tolist())


def recordings_source(
    name: str,
    rows: Iterable[tuple[AudioEntry, Recording | None]],
    codec: CodecFacts,
    drop_bad_audio: bool,
) -> SpeechSource:
    """Rows with a recording each, or None where the entry holds codes; every header is checked now.

    Raises:
        InvalidInputError: no row, an id occurs twice, or a bad header unless `drop_bad_audio`.
    """
    counts = Counter[str]()
    candidates: list[Candidate] = []
    codes: dict[str, tuple[int, ...]] = {}
    recordings: dict[str, Recording] = {}
    for entry, recording, header in _with_headers(rows):
        if entry.id in codes or entry.id in recordings:
            raise InvalidInputError(f"{name}, utterance '{entry.id}'", "two rows", "unique ids", "rename one of them")
        if recording is None:
            codes[entry.id] = entry.codes or ()
            duration_s = len(codes[entry.id]) / codec.frame_rate_hz
        else:
            try:
                duration_s = header().duration_s
            except BadAudioError as error:
                if not drop_bad_audio:
                    raise
                counts[error.reason] += 1
                continue
            recordings[entry.id] = recording
        candidates.append(Candidate(entry.id, entry.text, entry.voice, duration_s, entry.split))
    if not candidates:
        observed = f"no usable rows (dropped: {dict(counts)})" if counts else "no rows"
        raise InvalidInputError(name, observed, "at least one utterance", "fill it or correct subset_data.source")

    def codes_of(utterance_id: str) -> tuple[int, ...]:
        if utterance_id in codes:
            return codes[utterance_id]
        return encode_alone(recordings[utterance_id], codec)

    return SpeechSource(tuple(candidates), codes_of, recordings, counts)


def _with_headers(
    rows: Iterable[tuple[AudioEntry, Recording | None]],
) -> Iterator[tuple[AudioEntry, Recording | None, Callable[[], AudioHeader]]]:
    """Rows, and what gives the header of each; files are asked about HEADERS_AT_ONCE together."""
    remaining = iter(rows)
    while block := list(islice(remaining, HEADERS_AT_ONCE)):
        files = [recording for _, recording in block if isinstance(recording, FileRecording)]
        facts = iter(header_facts([recording.path for recording in files]) if files else [])
        for entry, recording in block:
            if isinstance(recording, FileRecording):
                yield entry, recording, partial(recording.header, next(facts))
            elif recording is not None:
                yield entry, recording, recording.header
            else:
                yield entry, None, _no_header


def _no_header() -> AudioHeader:
    raise ValueError("codes have no header")


def entries_source(
    name: str, folder: Path, entries: Iterable[AudioEntry], codec: CodecFacts, drop_bad_audio: bool
) -> SpeechSource:
    """Entries whose audio files lie below `folder`.

    Raises:
        InvalidInputError: as `recordings_source`, or a path leaves the folder.
    """

    def located(entry: AudioEntry) -> FileRecording | None:
        if entry.audio is None:
            return None
        path = audio_path(folder, entry.audio, f"{Path(name).name}, utterance '{entry.id}'")
        return FileRecording(entry.id, path, entry.sample_rate_hz)

    return recordings_source(name, ((entry, located(entry)) for entry in entries), codec, drop_bad_audio)
