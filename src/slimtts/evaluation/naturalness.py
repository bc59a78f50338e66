"""How natural it sounds: a predicted mean opinion score, by the model that the package distillmos carries.

Stahl & Gamper 2025 (arXiv 2502.05356); scale 1 to 5. A prediction, not a listening test: use it for differences.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch

from slimtts.evaluation.waveforms import is_silent, to_16_khz

LOWEST_MOS = 1.0


class MosPredictor:
    """A MOS predictor on the CPU, its weights from the package. `name` tells which: compare only equal names."""

    def __init__(self) -> None:
        from distillmos import ConvTransformerSQAModel

        self.name = f"distillmos {version('distillmos')}"
        with contextlib.redirect_stdout(io.StringIO()):  # it announces where its weights are
            self._model = ConvTransformerSQAModel().eval()

    def predict(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> list[float]:
        """One score in 1..5 for each float32 [samples]; empty or silent audio gets 1.0, the lowest.

        One at a time: the model pads or cuts everything to 7.68 s itself, and batches were no faster (measured).

        Raises:
            InvalidInputError: a waveform is not mono floating point or not finite; the message names its index.
        """
        return [self._rate(wave) for wave in to_16_khz(waveforms, sample_rate_hz)]

    def _rate(self, wave: np.ndarray) -> float:
        if is_silent(wave):
            return LOWEST_MOS
        with torch.inference_mode():
            return float(self._model(torch.from_numpy(wave)[None]))
