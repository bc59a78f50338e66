"""What chosen layers compute on a calibration batch, at the positions that predict codes.

Works for decoders of transformers whose layers live in `model.model.layers` and end in `mlp.down_proj`.
Legend: P target positions of a batch, I channels of the feed-forward network (FFN), D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch

from slimtts.decoding.teacher_forcing import ForcedBatch, hidden_states

# layer, FFN activations [P, I] (the input of down_proj), hidden states after the layer [P, D]
See = Callable[[int, torch.Tensor, torch.Tensor], None]


def observe_layers(model: Any, layers: Iterable[int], batch: ForcedBatch, see: See) -> None:
    """One forward pass; `see` is called for each of the layers, before the next one runs. Hooks are always removed.

    Hooks, because the last entry of transformers' `hidden_states` is after the final norm.
    """
    here = batch.to(model.device)
    activations: dict[int, torch.Tensor] = {}

    def keep_activation(index: int) -> Callable[..., None]:
        def keep(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            activations[index] = here.at_targets(args[0])

        return keep

    def report(index: int) -> Callable[..., None]:
        def tell(_: Any, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            see(index, activations.pop(index), here.at_targets(hidden))

        return tell

    with ExitStack() as hooks:
        for index in layers:
            layer = model.model.layers[index]
            hooks.callback(layer.mlp.down_proj.register_forward_pre_hook(keep_activation(index)).remove)
            hooks.callback(layer.register_forward_hook(report(index)).remove)
        hidden_states(model, here)
