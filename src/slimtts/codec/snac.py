"""Orpheus' codec: SNAC at 24 kHz (arXiv 2410.14411), three levels of codes flattened into one sequence.

A frame is 7 flat codes: one of the coarsest level, two of the next, four of the finest, in the order of `POSITIONS`.
The flat code at position p of its frame is p * 4,096 + value, so that every position has a range of its own.
Order: the published inference code of Orpheus TTS. Legend: B utterances, F frames, N samples (N = 2,048 F).
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from slimtts.errors import InvalidInputError
from slimtts.model_files import check_archive, check_inside

# Position in a frame -> level, and which of the level's codes of that frame.
POSITIONS = ((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3))
LEVEL_CODES = (1, 2, 4)  # of a frame
CODES_A_FRAME = len(POSITIONS)
CODEBOOK_SIZE = 4096
# SNAC's own weights are published as a state dict alone.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def flatten_levels(levels: list[torch.Tensor]) -> torch.Tensor:
    """Values [B, F], [B, 2 F], [B, 4 F] -> flat codes [B, 7 F]."""
    frames = [level.unflatten(1, (-1, count)) for level, count in zip(levels, LEVEL_CODES, strict=True)]
    values = torch.stack([frames[level][..., index] for level, index in POSITIONS], dim=-1)
    return (values + CODEBOOK_SIZE * torch.arange(CODES_A_FRAME)).flatten(1)


def split_levels(codes: torch.Tensor) -> list[torch.Tensor]:
    """Flat codes [B, ..] -> values [B, F], [B, 2 F], [B, 4 F]; an incomplete last frame is dropped.

    A code of another position's range keeps its value and counts for the position where it stands.
    """
    whole = codes[:, : codes.shape[1] // CODES_A_FRAME * CODES_A_FRAME] % CODEBOOK_SIZE
    values = whole.unflatten(1, (-1, CODES_A_FRAME))
    return [
        torch.stack([values[..., p] for p, (at, _) in enumerate(POSITIONS) if at == level], dim=-1).flatten(1)
        for level in range(len(LEVEL_CODES))
    ]


class SnacCodec:
    """A `snac.SNAC` of three levels behind the interface of `SpeechCodec`."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.sample_rate_hz = int(model.sampling_rate)
        self.samples_per_frame = int(model.hop_length) * LEVEL_CODES[-1]
        self.frame_rate_hz = self.sample_rate_hz / self.samples_per_frame * CODES_A_FRAME
        self.num_codes = CODES_A_FRAME * CODEBOOK_SIZE

    @torch.inference_mode()
    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] in -1..1 at 24 kHz -> int64 flat codes [B, 7 F]; the end is padded with silence."""
        return flatten_levels([level.long() for level in self.model.encode(waveform.unsqueeze(1))])

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 flat codes [B, ..] -> float [B, 2,048 F] in -1..1; empty for less than a frame."""
        levels = split_levels(codes)
        if not levels[0].shape[1]:
            return torch.zeros(codes.shape[0], 0)
        # The decoder adds noise: with a seed, the same codes always give the same audio.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            samples: torch.Tensor = self.model.decode(levels)[:, 0]
        return samples.clamp(-1, 1)

    @classmethod
    def load(cls, folder: Path) -> SnacCodec:
        """Reads config.json and the weights of a folder; strict, fp32, eval mode, nothing but tensors unpickled.

        Raises:
            InvalidInputError: `snac` is not installed, or no complete checkpoint of three levels of 4,096 codes.
        """
        try:
            from snac import SNAC
        except ImportError:
            raise InvalidInputError(
                "codec of Orpheus", "the package snac is not installed", "snac 1.2", "install slimtts[orpheus]"
            ) from None
        allowed, next_step = "a complete checkpoint of SNAC at 24 kHz", "fetch the codec again"
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is None:
            raise InvalidInputError(f"codec {folder}", f"none of {', '.join(WEIGHTS)}", allowed, next_step)
        check_archive(check_inside(folder, weights))
        try:
            config = json.loads((folder / "config.json").read_text())
            shape = (config.get("vq_strides"), config.get("codebook_size"))
            if shape != ([4, 2, 1], CODEBOOK_SIZE):
                raise ValueError(f"strides and codes a level {shape}, not {([4, 2, 1], CODEBOOK_SIZE)}")
            model = SNAC(**config)
            is_safe = weights.suffix == ".safetensors"
            state = load_file(weights) if is_safe else torch.load(weights, map_location="cpu", weights_only=True)
            model.load_state_dict(state)
        except (SafetensorError, pickle.UnpicklingError, OSError, ValueError, TypeError, RuntimeError) as error:
            raise InvalidInputError(f"codec {folder}", str(error).splitlines()[0], allowed, next_step) from None
        return cls(model.float())
