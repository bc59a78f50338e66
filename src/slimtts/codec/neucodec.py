"""NeuTTS's codec: NeuCodec (arXiv 2509.09550), 65,536 codes at 50 a second, in the implementation of transformers.

It listens at 16 kHz and speaks at 24 kHz; here both sides are at 24 kHz.
"""

from __future__ import annotations

from typing import Any

import torch

from slimtts.codec.xcodec2 import Xcodec2Codec


class NeuCodec(Xcodec2Codec):
    """As `Xcodec2Codec`, at the rate of its decoder."""

    model_name, extractor_name = "NeuCodecModel", "NeuCodecFeatureExtractor"

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.sample_rate_hz = int(model.config.output_sampling_rate)

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] in -1..1 at 24 kHz -> int64 codes [B, F]; the last, incomplete frame is dropped."""
        import torchaudio

        heard = torchaudio.functional.resample(waveform, self.sample_rate_hz, self.extractor.sampling_rate)
        return super().encode(heard)
