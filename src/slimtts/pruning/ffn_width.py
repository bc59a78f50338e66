"""Narrower feed-forward networks: every layer keeps as many channels, those that add most to the hidden state.

The importance of channel j is E|activation_j| * ||down_proj[:, j]||_2 over calibration batches, in the spirit of Wanda
(arXiv 2306.11695), which scores single weights so. One width for all layers, because config.json has one
`intermediate_size`: any tool loads the result.
Legend: I channels of the FFN, D hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.pruning.observation import observe_layers
from slimtts.pruning.surgery import built_from

MULTIPLE = 8  # matrix kernels want widths that divide by it


def kept_width(width: int, share: float) -> int:
    """Channels left of `width`: rounded to a multiple of 8, at least one multiple, all of them for share 1."""
    return width if share == 1 else min(width, MULTIPLE * max(1, round(share * width / MULTIPLE)))


@torch.no_grad()
def channel_importance(model: Any, batches: Sequence[ForcedBatch]) -> list[torch.Tensor]:
    """float64 [I] for each layer."""
    layers = model.model.layers
    sums = [torch.zeros(model.config.intermediate_size, dtype=torch.float64, device=model.device) for _ in layers]
    positions = 0

    def see(index: int, activations: torch.Tensor, _: torch.Tensor) -> None:
        sums[index] += activations.double().abs().sum(0)

    for batch in batches:
        observe_layers(model, range(len(layers)), batch, see)
        positions += int(batch.is_target.sum())
    norms = [layer.mlp.down_proj.weight.double().norm(dim=0) for layer in layers]
    return [total / max(1, positions) * norm for total, norm in zip(sums, norms, strict=True)]


def sliced(name: str, tensor: torch.Tensor, channels: Sequence[torch.Tensor]) -> torch.Tensor:
    """A tensor of the state with only the kept channels; tensors without an FFN axis as they are."""
    parts = name.split(".")
    if parts[-3:-2] != ["mlp"]:
        return tensor
    kept = channels[int(parts[2])].to(tensor.device)  # model.layers.<index>.mlp.<projection>.<weight or bias>
    if parts[-2] in ("gate_proj", "up_proj"):
        return tensor[kept]
    return tensor[:, kept] if parts[-1] == "weight" else tensor


def keep_channels(model: Any, channels: Sequence[torch.Tensor]) -> Any:
    """A new model whose layers keep these FFN channels: int64, as many in each layer. The given one is not touched."""
    config = copy.deepcopy(model.config)
    config.intermediate_size = len(channels[0])
    return built_from(
        model, config, {name: sliced(name, tensor, channels) for name, tensor in model.state_dict().items()}
    )


def narrow_ffn(model: Any, batches: Sequence[ForcedBatch], share: float) -> Any:
    """A new model with `share` of the FFN channels of every layer, the most important ones in their old order."""
    width = kept_width(model.config.intermediate_size, share)
    ranked = [torch.argsort(i, descending=True, stable=True) for i in channel_importance(model, batches)]
    return keep_channels(model, [order[:width].sort().values for order in ranked])
