"""Probabilities of the next code as the plain decoder draws it, and draws that a device can make without the host.

Legend: T places that follow each other, V spoken vocabulary (codes + END), W codes of the repetition window.
"""

from __future__ import annotations

import torch

from slimtts.decoding import ras
from slimtts.decoding.sampling import likeliest, penalized
from slimtts.params import DecodingParams

LARGEST_UNIFORM = 1 - 2**-22  # so that rounding in fp32 leaves its product with a sum below the sum


def truncated(probabilities: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """The likeliest ids of [T, V] as `sampling.sample` limits them, renormalised; `top_k` 0 is no limit."""
    ordered, order = likeliest(probabilities, top_p, top_k)
    if order is None:
        return probabilities
    return torch.zeros_like(probabilities).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def distributions(
    logits: torch.Tensor, decoding: DecodingParams, recent: torch.Tensor, met: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain decoder draws from, [T, V] fp32, and the logits behind it.

    `recent` [T, W] are the codes before each place, -1 where there was none; `met` bool [T, V] those of the prompt
    and of all before each place. Each is read only by the way of decoding that needs it.
    """
    if decoding.repetition_penalty > 1:
        logits = penalized(logits, met, decoding.repetition_penalty)
    if decoding.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1), logits
    whole = torch.softmax(logits / decoding.temperature, -1)
    p = truncated(whole, decoding.top_p, decoding.top_k)
    if decoding.repetition_aware:
        # A repetition is drawn again from the whole distribution, so its probability goes there.
        every = torch.arange(logits.shape[-1], device=logits.device)
        again = torch.stack([ras.is_repetition(every, before[None]) for before in recent])
        p = p.masked_fill(again, 0) + (p * again).sum(-1, keepdim=True) * whole
    return p, logits


def drawn(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One id a row of [T, V], in proportion to its weight and never one without; `uniform` [T] in [0, 1) decides."""
    cumulative = weights.cumsum(-1)
    enough = cumulative > uniform.clamp(max=LARGEST_UNIFORM).unsqueeze(-1) * cumulative[:, -1:]
    return (enough & (weights > 0)).int().argmax(-1)  # the first
