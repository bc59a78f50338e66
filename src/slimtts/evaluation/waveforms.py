"""What every judge of speech accepts: finite mono waveforms, brought to the 16 kHz that all of them hear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from slimtts.data.audio import resample
from slimtts.errors import InvalidInputError

SAMPLE_RATE_HZ = 16_000


def to_16_khz(waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> list[np.ndarray]:
    """The waveforms as float32 [samples] at 16 kHz; empty ones stay empty.

    Raises:
        InvalidInputError: a waveform that is not one-dimensional floating point, or holds NaN or infinity.
    """
    heard = []
    for index, waveform in enumerate(waveforms):
        if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating):
            raise InvalidInputError(
                f"waveform {index}", f"{waveform.dtype} {list(waveform.shape)}", "float32 [samples]",
                "mix to mono and scale to -1..1",
            )  # fmt: skip
        if not np.isfinite(waveform).all():
            raise InvalidInputError(
                f"waveform {index}", "NaN or infinity", "finite samples", "count this utterance as failed"
            )
        wave = np.ascontiguousarray(waveform, dtype=np.float32)
        if sample_rate_hz != SAMPLE_RATE_HZ and len(wave):
            wave = resample(torch.from_numpy(wave), sample_rate_hz, SAMPLE_RATE_HZ).numpy()
        heard.append(wave)
    return heard


def is_silent(waveform: np.ndarray) -> bool:
    """No samples, or nothing but zeros."""
    return not waveform.any()
