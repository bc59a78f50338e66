"""What every codec offers, whichever family it belongs to."""

from __future__ import annotations

from typing import Protocol

import torch


class SpeechCodec(Protocol):
    """One codebook, a fixed number of codes a second.

    Legend: B utterances, F codec frames, N samples.
    """

    sample_rate_hz: int
    frame_rate_hz: float
    num_codes: int

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] in -1..1 at `sample_rate_hz` -> int64 codes [B, F]."""
        ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 codes [B, F] -> float [B, N] in -1..1."""
        ...
