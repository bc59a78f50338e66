"""Attention for sequences of a hundred tokens on a CPU, where it is mostly memory that is moved.

The queries that share a key are rows of one product, so that no key is copied for each of them, and scale and mask are
added in one pass. To rounding it is transformers' "eager", forward and backward (the test's reference).
Legend: B rows, T tokens, W tokens seen (T, or more with a cache), H heads, K key/value heads, D channels a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

GROUPED = "slimtts_grouped"


def grouped_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Query [B, H, T, D], key and value [B, K, W, D], additive mask [B or 1, 1, T, W] -> [B, T, H, D]."""
    rows, heads, tokens, channels = query.shape
    groups, width = key.shape[1:3]
    alike = heads // groups
    asked = query.reshape(rows * groups, alike * tokens, channels)
    keys, values = (part.reshape(rows * groups, width, channels) for part in (key, value))
    scores = torch.bmm(asked, keys.transpose(1, 2)).view(rows, groups, alike, tokens, width)
    weights = torch.add(mask.unsqueeze(1), scores, alpha=scaling).softmax(-1).to(query.dtype)
    seen = torch.bmm(weights.view(rows * groups, alike * tokens, width), values)
    return seen.view(rows, heads, tokens, channels).transpose(1, 2).contiguous(), None


def use_grouped_attention(model: Any) -> None:
    """Gives the model this attention, under a name that transformers keeps for it."""
    AttentionInterface.register(GROUPED, grouped_attention)
    AttentionMaskInterface.register(GROUPED, eager_mask)
    model.set_attn_implementation(GROUPED)
