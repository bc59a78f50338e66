"""Whose voice it is: cosine between speaker embeddings, by the encoder that the package resemblyzer carries.

GE2E encoder (Wan et al. 2018, arXiv 1710.10467). Its cosines are not those of the WavLM verifier of seed-tts-eval.
Legend: B utterances.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from slimtts.errors import InvalidInputError
from slimtts.evaluation.waveforms import SAMPLE_RATE_HZ, is_silent, to_16_khz

EMBEDDING_SIZE = 256
MIN_VOICE_S = 0.3


class SpeakerSimilarity:
    """A voice encoder on the CPU. `name` tells which: compare only numbers of equal names.

    The weights lie in the package and are read as tensors only (torch.load refuses anything else since 2.6).
    """

    def __init__(self) -> None:
        from resemblyzer import VoiceEncoder

        self.name = f"resemblyzer {version('resemblyzer')}"
        self._encoder = VoiceEncoder(device="cpu", verbose=False)

    def embed(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        """float32 [B, 256], each row of length 1.

        A row is zeros, and so every cosine with it 0.0, when less than 0.3 s of the audio is voice: a system that
        says nothing resembles nobody.

        Raises:
            InvalidInputError: a waveform is not mono floating point or not finite; the message names its index.
        """
        embeddings = np.zeros((len(waveforms), EMBEDDING_SIZE), dtype=np.float32)
        for row, wave in enumerate(to_16_khz(waveforms, sample_rate_hz)):
            voice = _voiced_part(wave)
            if len(voice) >= MIN_VOICE_S * SAMPLE_RATE_HZ:
                embeddings[row] = self._encoder.embed_utterance(voice)
        return embeddings

    @staticmethod
    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """[B, 256] and [B, 256] of `embed` -> [B] in -1..1, row by row.

        Raises:
            InvalidInputError: the shapes differ.
        """
        if a.shape != b.shape:
            raise InvalidInputError(
                "speaker similarity", f"embeddings {list(a.shape)} against {list(b.shape)}", "equal shapes",
                "embed one prompt for each utterance",
            )  # fmt: skip
        return np.clip((a * b).sum(-1), -1.0, 1.0)


def _voiced_part(wave: np.ndarray) -> np.ndarray:
    """Louder if it was soft, long pauses cut out: what the encoder was trained on."""
    from resemblyzer import preprocess_wav

    if len(wave) < MIN_VOICE_S * SAMPLE_RATE_HZ or is_silent(wave):
        return wave[:0]
    # The voice detector reads 16-bit samples: beyond full scale they would wrap around.
    return preprocess_wav(wave / max(1.0, float(np.abs(wave).max())))
