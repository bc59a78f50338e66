"""LLaSA's codec: X-codec2 (arXiv 2502.04128) as transformers has it, 65,536 codes at 50 a second, 16 kHz.

Legend: B utterances, F codec frames, N samples.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from slimtts.errors import InvalidInputError
from slimtts.model_weights import check_weights


class Xcodec2Codec:
    """A model and its feature extractor behind the interface of `SpeechCodec`."""

    model_name, extractor_name = "Xcodec2Model", "Xcodec2FeatureExtractor"

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor = model.eval(), extractor
        self.sample_rate_hz = int(extractor.sampling_rate)
        self.frame_rate_hz = self.sample_rate_hz / extractor.hop_length
        self.num_codes = math.prod(model.config.quantization_levels)

    @torch.inference_mode()
    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] in -1..1 -> int64 codes [B, F], F as the published codec makes it: N is padded by a sample."""
        inputs = self.extractor(
            audio=list(waveform), sampling_rate=self.extractor.sampling_rate, padding=True, return_tensors="pt"
        )
        codes: torch.Tensor = self.model.encode(**inputs).audio_codes[:, 0]
        return codes.long()

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 codes [B, F] -> float [B, N] in -1..1."""
        samples: torch.Tensor = self.model.decode(audio_codes=codes.unsqueeze(1)).audio_values[:, 0]
        return samples.clamp(-1, 1)

    @classmethod
    def load(cls, folder: Path) -> Xcodec2Codec:
        """Reads a folder that save_pretrained wrote; fp32, eval mode.

        Raises:
            InvalidInputError: no complete safetensors checkpoint of this codec.
        """
        import transformers

        allowed, next_step = f"a complete safetensors checkpoint of {cls.model_name}", "fetch the codec again"
        try:
            check_weights(folder)
        except InvalidInputError as error:
            raise InvalidInputError(f"codec {folder}", error.observed, allowed, next_step) from None
        try:
            model, info = getattr(transformers, cls.model_name).from_pretrained(
                folder, dtype="float32", use_safetensors=True, output_loading_info=True, local_files_only=True
            )
            extractor = getattr(transformers, cls.extractor_name).from_pretrained(folder, local_files_only=True)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"codec {folder}", str(error).splitlines()[0], allowed, next_step) from None
        absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if absent:
            observed = f"{len(absent)} tensors missing or of another shape, first {absent[0]}"
            raise InvalidInputError(f"codec {folder}", observed, allowed, next_step)
        return cls(model, extractor)
