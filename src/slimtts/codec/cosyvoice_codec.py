"""CosyVoice 2's codec: the S3 tokenizer in (16 kHz), flow matching and HiFT out (24 kHz), 6,561 codes at 25 a second.

Both ways are other people's packages and opened at first use: a model can be scored and healed on codes alone.
Legend: B utterances, F codec frames, N samples.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchaudio

from slimtts.errors import InvalidInputError

ENCODER = "speech_tokenizer_v2"
ENCODER_RATE_HZ = 16_000
SPEAKER_CHANNELS = 192


class CosyVoiceCodec:
    """Satisfies `SpeechCodec`. `folder` is CosyVoice 2's; without it, nothing can be decoded.

    Speech is decoded in one neutral voice (a speaker embedding of zeros, no prompt): words can be judged, the
    likeness to a prompt's voice cannot.
    """

    sample_rate_hz = 24_000
    frame_rate_hz = 25.0
    num_codes = 6561

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    @cached_property
    def _encoder(self) -> Any:
        try:
            import s3tokenizer
        except ImportError:
            raise InvalidInputError(
                "CosyVoice codes of audio",
                "no package s3tokenizer",
                "an installed s3tokenizer, or data that holds codes",
                'run pip install "slimtts[cosyvoice]"',
            ) from None
        own = self.folder / f"{ENCODER}.onnx" if self.folder else None
        name = str(own) if own is not None and own.is_file() else f"{ENCODER}_25hz"
        return s3tokenizer.load_model(name).eval()

    @cached_property
    def _vocoder(self) -> Any:
        allowed, next_step = "CosyVoice's own code and folder", "install CosyVoice and name its folder in teacher.codec"
        if self.folder is None or not (self.folder / "cosyvoice2.yaml").is_file():
            observed = f"{self.folder or 'no folder'}, without cosyvoice2.yaml"
            raise InvalidInputError("audio of CosyVoice codes", observed, allowed, next_step)
        try:
            from cosyvoice.cli.cosyvoice import CosyVoice2
        except ImportError as error:
            raise InvalidInputError("audio of CosyVoice codes", str(error), allowed, next_step) from None
        return CosyVoice2(str(self.folder)).model

    @torch.inference_mode()
    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] in -1..1 at 24 kHz -> int64 codes [B, F].

        Raises:
            InvalidInputError: s3tokenizer is not installed.
        """
        encoder = self._encoder
        import s3tokenizer

        speech = torchaudio.functional.resample(waveform, self.sample_rate_hz, ENCODER_RATE_HZ)
        # One mel at a time: each is scaled by its own loudest bin.
        mels, lengths = s3tokenizer.padding([s3tokenizer.log_mel_spectrogram(row) for row in speech])
        codes: torch.Tensor = encoder.quantize(mels, lengths)[0]
        return codes.long()

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 codes [B, F] -> float [B, N] in -1..1.

        Raises:
            InvalidInputError: CosyVoice is not installed, or its folder is not named.
        """
        voice = torch.zeros(1, SPEAKER_CHANNELS)
        rows = []
        for row in codes.to(torch.int32).unsqueeze(1):
            parts = self._vocoder.tts(source_speech_token=row, flow_embedding=voice, stream=False)
            rows.append(torch.cat([part["tts_speech"] for part in parts], dim=1))
        return torch.cat(rows).clamp(-1, 1)
