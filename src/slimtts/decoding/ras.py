"""Repetition-aware sampling: a code that was just said is drawn again, from the whole distribution.

Source: VALL-E 2 (arXiv 2406.05370), with CosyVoice 2's constants (cosyvoice2.yaml). Legend: B rows, W recent codes.
"""

from __future__ import annotations

import torch

WINDOW = 10
TAU = 0.1  # share of the window from which on a code counts as repeated


def is_repetition(chosen: torch.Tensor, recent: torch.Tensor) -> torch.Tensor:
    """bool [B]: `chosen` [B] is at least tau * window times among the last codes `recent` [B, W], W <= window."""
    return (recent == chosen.unsqueeze(1)).sum(1) >= TAU * WINDOW
