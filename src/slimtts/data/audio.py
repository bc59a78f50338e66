"""Recordings as tensors, and every change of rate. What is no speech is refused by `slimtts.data.sound_files`.

Legend: N samples.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torchaudio

from slimtts.data.sound_files import Segment, read_speech

# torchaudio's filter has (from x to) / gcd^2 weights: 2.8 GB for 44,101 -> 16,000 Hz. Beyond this, SciPy's polyphase
# filter, which grows with from + to; the usual rates stay below (44,100 -> 16,000: 70,560).
MAX_KERNEL_WEIGHTS = 4_000_000


def read_audio(
    sound: Path | bytes, expected_rate_hz: int | None, utterance_id: str, segment: Segment | None = None
) -> tuple[torch.Tensor, int]:
    """Mono float32 [N] and its rate in Hz; two channels are averaged.

    Raises:
        BadAudioError: as `slimtts.data.sound_files.read_speech`.
    """
    samples, rate_hz = read_speech(sound, expected_rate_hz, utterance_id, segment)
    return torch.from_numpy(samples), rate_hz


def resample(wave: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    """float [..., N] at `from_hz` -> [..., ceil(N * to_hz / from_hz)] at `to_hz`, in memory of the order of both."""
    if from_hz == to_hz:
        return wave
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    if up * down <= MAX_KERNEL_WEIGHTS:
        return torchaudio.functional.resample(wave, from_hz, to_hz)
    from scipy.signal import resample_poly

    return torch.from_numpy(resample_poly(wave.numpy(), up, down, axis=-1)).to(wave.dtype)
