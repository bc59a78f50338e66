"""Recordings, refused with a reason when they cannot be speech.

Legend: N samples, C channels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from slimtts.errors import InvalidInputError

MIN_AUDIO_S = 0.2  # shorter is a broken cut, not speech
MAX_AUDIO_S = 600.0  # longer is a recording that nobody cut into sentences; also bounds memory
MAX_CHANNELS = 2
SEGMENT_SLACK_S = 0.025  # manifests round; a segment may end this far past its file


class BadAudioError(InvalidInputError):
    """A recording that cannot be used; `reason` is the name under which it is counted when it is dropped."""

    def __init__(self, what: str, observed: object, allowed: object, next_step: str, reason: str = "") -> None:
        super().__init__(what, observed, allowed, next_step)
        self.reason = f"audio_{reason}"


@dataclass(frozen=True)
class AudioHeader:
    """What a file says about itself."""

    sample_rate_hz: int
    duration_s: float


@dataclass(frozen=True)
class Segment:
    """A part of a longer file."""

    start_s: float
    duration_s: float


def _describe(sound: Path | bytes, utterance_id: str) -> str:
    return f"utterance '{utterance_id}', {sound.name if isinstance(sound, Path) else 'audio in the data'}"


def _opened(sound: Path | bytes) -> str | io.BytesIO:
    return str(sound) if isinstance(sound, Path) else io.BytesIO(sound)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rsplit(": ", 1)[-1]


def check_duration(duration_s: float, what: str) -> None:
    """Refuses what is too short or too long for a sentence.

    Raises:
        BadAudioError: outside of MIN_AUDIO_S..MAX_AUDIO_S.
    """
    if not MIN_AUDIO_S <= duration_s <= MAX_AUDIO_S:
        raise BadAudioError(
            what,
            f"{duration_s:.3f} s",
            f"{MIN_AUDIO_S} to {MAX_AUDIO_S:.0f} s",
            "cut it anew or remove the row",
            "too_short" if duration_s < MIN_AUDIO_S else "too_long",
        )


def mono(samples: np.ndarray, what: str) -> torch.Tensor:
    """float [N, C] -> float32 [N], channels averaged.

    Raises:
        BadAudioError: a sample is not finite.
    """
    wave = torch.from_numpy(samples).mean(dim=1)
    if not bool(torch.isfinite(wave).all()):
        raise BadAudioError(what, "samples that are NaN or infinite", "finite samples", "replace it", "not_finite")
    return wave


def read_header(
    sound: Path | bytes, expected_rate_hz: int | None, utterance_id: str, segment: Segment | None = None
) -> AudioHeader:
    """Length and rate of a file, or of a segment of it, without reading the samples; `bytes` are a whole file's.

    Raises:
        BadAudioError: missing, unreadable, another rate than expected, too many channels, empty, too short or long.
    """
    what = _describe(sound, utterance_id)
    try:
        if isinstance(sound, Path) and not sound.is_file():
            raise BadAudioError(what, "no such file", "an audio file", "restore it or remove the row", "missing")
        info = soundfile.info(_opened(sound))
    except (soundfile.LibsndfileError, OSError) as error:
        raise BadAudioError(
            what, f"unreadable: {_first_line(error)}", "WAV, FLAC or OGG", "convert or replace it", "unreadable"
        ) from None
    if expected_rate_hz is not None and info.samplerate != expected_rate_hz:
        raise BadAudioError(
            what,
            f"{info.samplerate} Hz in the header",
            f"{expected_rate_hz} Hz as the manifest says",
            "correct sample_rate_hz or the file",
            "other_rate",
        )
    if info.channels > MAX_CHANNELS:
        raise BadAudioError(what, f"{info.channels} channels", "1 or 2", "mix it down to mono", "many_channels")
    if info.frames == 0:
        raise BadAudioError(
            what, "empty audio", f"at least {MIN_AUDIO_S} s", "replace it or remove the row", "too_short"
        )
    duration_s = info.frames / info.samplerate
    if segment is not None:
        left_s = duration_s - segment.start_s
        if segment.duration_s > left_s + SEGMENT_SLACK_S:
            raise BadAudioError(
                what,
                f"a segment to {segment.start_s + segment.duration_s:.3f} s",
                f"up to the file's {duration_s:.3f} s",
                "correct the segment or the file",
                "incomplete",
            )
        duration_s = min(segment.duration_s, left_s)
    check_duration(duration_s, what)
    return AudioHeader(info.samplerate, duration_s)


def read_audio(
    sound: Path | bytes, expected_rate_hz: int | None, utterance_id: str, segment: Segment | None = None
) -> tuple[torch.Tensor, int]:
    """Mono float32 [N] and its rate in Hz; two channels are averaged.

    Raises:
        BadAudioError: as `read_header`, or the samples cannot be read, are fewer than announced, or not finite.
    """
    header = read_header(sound, expected_rate_hz, utterance_id, segment)
    what = _describe(sound, utterance_id)
    start, frames = 0, -1  # the whole file
    if segment is not None:
        start, frames = (round(s * header.sample_rate_hz) for s in (segment.start_s, header.duration_s))
    try:
        samples, rate_hz = soundfile.read(_opened(sound), frames, start, dtype="float32", always_2d=True)  # [N, C]
    except (soundfile.LibsndfileError, OSError) as error:
        raise BadAudioError(
            what, f"unreadable: {_first_line(error)}", "complete audio", "replace it", "unreadable"
        ) from None
    if len(samples) + (segment is not None) < int(header.duration_s * rate_hz):  # a segment's ends are rounded
        raise BadAudioError(
            what,
            f"{len(samples) / rate_hz:.3f} s of {header.duration_s:.3f} s",
            "complete audio",
            "replace it",
            "incomplete",
        )
    return mono(samples, what), rate_hz


def resample(wave: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    """float [..., N] at `from_hz` -> [..., ceil(N * to_hz / from_hz)] at `to_hz`."""
    if from_hz == to_hz:
        return wave
    return torchaudio.functional.resample(wave, from_hz, to_hz)
