"""Recordings from disk, refused with a reason when they cannot be speech.

Legend: N samples, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torchaudio

from slimtts.errors import InvalidInputError

MIN_AUDIO_S = 0.2  # shorter is a broken cut, not speech
MAX_AUDIO_S = 600.0  # longer is a recording that nobody cut into sentences; also bounds memory
MAX_CHANNELS = 2


@dataclass(frozen=True)
class AudioHeader:
    """What a file says about itself."""

    sample_rate_hz: int
    duration_s: float


def read_header(path: Path, expected_rate_hz: int | None, utterance_id: str) -> AudioHeader:
    """Length and rate, without reading the samples.

    Raises:
        InvalidInputError: missing, unreadable, another rate than expected, too many channels, empty, too short or long.
    """
    what = f"utterance '{utterance_id}', {path.name}"
    try:
        if not path.is_file():
            raise InvalidInputError(what, "no such file", "an audio file", "restore it or remove the row")
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        problem = str(error).splitlines()[0].rsplit(": ", 1)[-1]
        raise InvalidInputError(what, f"unreadable: {problem}", "WAV, FLAC or OGG", "convert or replace it") from None
    if expected_rate_hz is not None and info.samplerate != expected_rate_hz:
        raise InvalidInputError(
            what,
            f"{info.samplerate} Hz in the header",
            f"{expected_rate_hz} Hz as the manifest says",
            "correct sample_rate_hz or the file",
        )
    if info.channels > MAX_CHANNELS:
        raise InvalidInputError(what, f"{info.channels} channels", "1 or 2", "mix it down to mono")
    if info.frames == 0:
        raise InvalidInputError(what, "empty audio", f"at least {MIN_AUDIO_S} s", "replace it or remove the row")
    duration_s = info.frames / info.samplerate
    if not MIN_AUDIO_S <= duration_s <= MAX_AUDIO_S:
        raise InvalidInputError(
            what, f"{duration_s:.3f} s", f"{MIN_AUDIO_S} to {MAX_AUDIO_S:.0f} s", "cut it anew or remove the row"
        )
    return AudioHeader(info.samplerate, duration_s)


def read_audio(path: Path, expected_rate_hz: int | None, utterance_id: str) -> tuple[torch.Tensor, int]:
    """Mono float32 [N] and its rate in Hz; two channels are averaged.

    Raises:
        InvalidInputError: as `read_header`, or the samples cannot be read, are fewer than announced, or not finite.
    """
    header = read_header(path, expected_rate_hz, utterance_id)
    what = f"utterance '{utterance_id}', {path.name}"
    try:
        samples, rate_hz = soundfile.read(str(path), dtype="float32", always_2d=True)  # [N, C]
    except (soundfile.LibsndfileError, OSError) as error:
        problem = str(error).splitlines()[0].rsplit(": ", 1)[-1]
        raise InvalidInputError(what, f"unreadable: {problem}", "complete audio", "replace it") from None
    if len(samples) < int(header.duration_s * rate_hz):
        raise InvalidInputError(
            what, f"{len(samples) / rate_hz:.3f} s of {header.duration_s:.3f} s", "complete audio", "replace it"
        )
    wave = torch.from_numpy(samples).mean(dim=1)
    if not bool(torch.isfinite(wave).all()):
        raise InvalidInputError(what, "samples that are NaN or infinite", "finite samples", "replace it")
    return wave, rate_hz


def resample(wave: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    """float [..., N] at `from_hz` -> [..., ceil(N * to_hz / from_hz)] at `to_hz`."""
    if from_hz == to_hz:
        return wave
    return torchaudio.functional.resample(wave, from_hz, to_hz)
