"""Muon for many small matrices: those of one shape are orthogonalised together.

`torch.optim.Muon` takes one matrix at a time, 15 products each; of a small model they are so short that starting them
costs as much as they do. State and arithmetic are those of torch's class, which is the reference of the tests.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch

# Of the matrices that are worked on at once: more would only cost memory.
MOST_ELEMENTS = 2**23


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`: updates of AdamW's size (arXiv 2502.16982)."""

    def __init__(self, params: Iterable[torch.nn.Parameter], momentum: float = 0.95) -> None:
        super().__init__(params, weight_decay=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for shape, alike in _by_shape(params):
                together = max(1, MOST_ELEMENTS // (shape[0] * shape[1]))
                for start in range(0, len(alike), together):
                    self._update(alike[start : start + together], group)
        return loss

    def _update(self, params: Sequence[torch.Tensor], group: dict[str, Any]) -> None:
        """Updates parameters [A, B] of one shape up to transposition."""
        updates = []
        for p, gradient in zip(params, (p.grad for p in params if p.grad is not None), strict=True):
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum)
        wide = torch.stack([_wide(update.bfloat16()) for update in updates])
        orthogonal = _orthogonalized(wide, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for p, update in zip(params, orthogonal.unbind(), strict=True):
            rate = group["lr"] * 0.2 * math.sqrt(max(p.shape))
            p.add_(_wide(update, like=p), alpha=-rate)


def _by_shape(params: Sequence[torch.Tensor]) -> Iterator[tuple[tuple[int, int], list[torch.Tensor]]]:
    alike = defaultdict(list)
    for p in params:
        alike[min(p.shape), max(p.shape)].append(p)
    return iter(alike.items())


def _wide(matrix: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """The matrix, transposed when it (or `like`) has more rows than columns."""
    rows, columns = (matrix if like is None else like).shape
    return matrix.T if rows > columns else matrix


def _orthogonalized(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Newton-Schulz iterations on bf16 [N, A, B], A <= B, as `torch.optim.Muon` takes them on each."""
    a, b, c = coefficients
    matrices.div_(torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp_(min=eps))
    for _ in range(steps):
        gram = torch.bmm(matrices, matrices.mT)
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, update, matrices, beta=a)
    return matrices
