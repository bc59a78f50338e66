"""2:4 sparsity: of every four neighbouring weights of a row, the two that matter less become zero.

A weight's importance is its magnitude, or with calibration batches Wanda's |w_ij| * ||x_j||_2 (arXiv 2306.11695,
Eq. 1): x_j is what reaches input j over all positions. Nothing is retrained. GPUs since Ampere have kernels for the
pattern (`slimtts.quantization.placement`); on a CPU it is a mask: zeros are stored and multiplied like other numbers.
Legend: O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from slimtts.decoding.teacher_forcing import ForcedBatch, hidden_states
from slimtts.errors import InvalidInputError

GROUP, KEPT = 4, 2


def decoder_linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of all decoder layers, by name; not the head, not the embeddings."""
    return {
        f"model.layers.{name}": module
        for name, module in model.model.layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def kept_weights(importance: torch.Tensor) -> torch.Tensor:
    """bool [O, I]: the two greatest of each four inputs; of equals, the first.

    Raises:
        InvalidInputError: I does not divide by four.
    """
    if importance.shape[-1] % GROUP:
        raise InvalidInputError(
            "2:4 sparsity", f"a layer of {importance.shape[-1]} inputs", "a multiple of 4", "leave sparse24 out"
        )
    groups = importance.unflatten(-1, (-1, GROUP))
    best = torch.argsort(groups, dim=-1, descending=True, stable=True)[..., :KEPT]
    return torch.zeros_like(groups, dtype=torch.bool).scatter(-1, best, True).flatten(-2)


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether every four neighbouring weights have at least two zeros."""
    if weight.shape[-1] % GROUP:
        return False
    return bool(((weight.unflatten(-1, (-1, GROUP)) != 0).sum(-1) <= KEPT).all())


@torch.no_grad()
def input_norms(model: Any, batches: Sequence[ForcedBatch]) -> dict[str, torch.Tensor]:
    """float64 [I] for each of `decoder_linears`: the L2 norm of what reaches each input, padding left out."""
    linears = decoder_linears(model)
    squares = {name: torch.zeros(linear.in_features, dtype=torch.float64) for name, linear in linears.items()}
    with ExitStack() as hooks:
        is_real = torch.zeros(0)

        def see(name: str, inputs: torch.Tensor) -> None:
            squares[name] += inputs[is_real].double().square().sum(0).cpu()

        for name, linear in linears.items():
            hook = linear.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
            hooks.callback(hook.remove)
        for batch in batches:
            here = batch.to(model.device)
            is_real = here.is_target.flip(1).cumsum(1).flip(1) > 0  # a row's last target is its last token
            hidden_states(model, here)
    return {name: total.sqrt() for name, total in squares.items()}


@torch.no_grad()
def make_sparse(model: Any, norms: Mapping[str, torch.Tensor] | None = None) -> None:
    """Zeroes half of the decoder's weights in place; importance by magnitude, with `norms` as Wanda."""
    for name, linear in decoder_linears(model).items():
        importance = linear.weight.abs()
        if norms is not None:
            importance = importance * norms[name].to(importance)
        linear.weight.mul_(kept_weights(importance))
