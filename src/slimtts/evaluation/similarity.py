"""Whose voice it is: cosine between speaker embeddings, by the encoder that the package resemblyzer carries, or WavLM.

resemblyzer: GE2E (Wan et al. 2018, arXiv 1710.10467). WavLM (arXiv 2110.13900) with an x-vector head, as transformers
has it; seed-tts-eval's verifier is WavLM-large with an ECAPA head, so its cosines are those of neither.
Legend: B utterances, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError

from slimtts.errors import InvalidInputError
from slimtts.evaluation.waveforms import SAMPLE_RATE_HZ, is_silent, to_16_khz
from slimtts.model_files import hash_weights
from slimtts.model_weights import check_weights
from slimtts.teachers.sources import resolve_checkpoint

EMBEDDING_SIZE = 256
MIN_VOICE_S = 0.3
MIN_WAVLM_S = 0.5  # its x-vector head looks at 15 frames of 20 ms at once


class VoiceEncoder(Protocol):
    """What says whose voice it is. `name` tells which: compare only numbers of equal names."""

    name: str

    def embed(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        """float32 [B, D], each row of length 1; zeros for audio without a voice."""
        ...


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


class WavLmSimilarity:
    """A WavLM with an x-vector head on the CPU, one utterance at a time: padding would change its embeddings."""

    def __init__(self, model: Any, extractor: Any, name: str) -> None:
        self.name, self._model, self._extractor = name, model, extractor

    @classmethod
    def load(cls, source: str) -> WavLmSimilarity:
        """A folder, or "owner/name@commit" of the hub, such as microsoft/wavlm-base-plus-sv; safetensors only.

        Raises:
            InvalidInputError: no complete checkpoint of WavLMForXVector in safetensors.
        """
        from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

        hub_id, _, commit = source.partition("@")
        folder = resolve_checkpoint(source if Path(source).is_dir() else hub_id, commit, "evaluate_student.similarity")
        mark = hash_weights(folder)
        check_weights(folder)
        try:
            model, info = WavLMForXVector.from_pretrained(
                folder, dtype="float32", use_safetensors=True, output_loading_info=True, local_files_only=True
            )
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise _no_wavlm(folder, str(error).splitlines()[0]) from None
        absent = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if absent or model.config.model_type != "wavlm":
            raise _no_wavlm(folder, f"tensors missing: {', '.join(absent[:2])}" if absent else model.config.model_type)
        if extractor.sampling_rate != SAMPLE_RATE_HZ:
            raise _no_wavlm(folder, f"{extractor.sampling_rate} Hz")
        title = folder.resolve().name if Path(source).is_dir() else hub_id
        return cls(model.eval(), extractor, f"{title} x-vector@{mark[:12]}")

    def embed(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        """float32 [B, D], each row of length 1; zeros below 0.5 s and for silence, so every cosine with it is 0.0.

        Raises:
            InvalidInputError: a waveform is not mono floating point or not finite; the message names its index.
        """
        embeddings = np.zeros((len(waveforms), self._model.config.xvector_output_dim), dtype=np.float32)
        for row, wave in enumerate(to_16_khz(waveforms, sample_rate_hz)):
            if len(wave) >= MIN_WAVLM_S * SAMPLE_RATE_HZ and not is_silent(wave):
                embeddings[row] = self._embed(wave)
        return embeddings

    @torch.inference_mode()
    def _embed(self, wave: np.ndarray) -> np.ndarray:
        inputs = self._extractor(wave, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        embedding: np.ndarray = torch.nn.functional.normalize(self._model(**inputs).embeddings[0], dim=0).numpy()
        return embedding


def _no_wavlm(folder: Path, observed: str) -> InvalidInputError:
    return InvalidInputError(
        f"voice encoder {folder}", observed, "a complete WavLMForXVector checkpoint of 16 kHz in safetensors",
        "convert it with save_pretrained, or say evaluate_student.similarity: bundled",
    )  # fmt: skip


def _voiced_part(wave: np.ndarray) -> np.ndarray:
    """Louder if it was soft, long pauses cut out: what the encoder was trained on."""
    from resemblyzer import preprocess_wav

    if len(wave) < MIN_VOICE_S * SAMPLE_RATE_HZ or is_silent(wave):
        return wave[:0]
    # The voice detector reads 16-bit samples: beyond full scale they would wrap around.
    return preprocess_wav(wave / max(1.0, float(np.abs(wave).max())))
