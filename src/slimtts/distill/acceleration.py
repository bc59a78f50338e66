"""Making a training faster or smaller without changing what it computes, beyond rounding.

Each measure alone is off in the tests that compare bits; what pays where is measured in docs/PERFORMANCE.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from slimtts.distill.head_loss import ChunkGradient, chunk_gradient

Compile = Literal["auto", "on", "off"]


def is_compiled(wanted: Compile, device: torch.device) -> bool:
    """`auto` compiles on CUDA; on a CPU it takes minutes before it pays."""
    return wanted == "on" or (wanted == "auto" and device.type == "cuda")


def hold_linears_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of the decoder's linear layers in `dtype`, for a model that only listens.

    Autocast would cast them at every pass, to the same numbers; residual stream and norms stay as they are.
    """
    for module in model.model.layers.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.Linear):
            module.requires_grad_(False).to(dtype)


@contextmanager
def accelerated(model: Any, compiled: bool, recomputed: bool) -> Iterator[None]:
    """While it lasts, the model's decoder layers are compiled, and keep only their inputs for the backward pass.

    Compiled is `forward` alone, once for all layers and lengths: hooks that record a layer's output stay outside of it,
    where they see every call.
    """
    if compiled:
        for layer in model.model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)
    if recomputed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if compiled:
            for layer in model.model.layers:
                del layer.forward
        if recomputed:
            model.gradient_checkpointing_disable()


@cache
def compiled_chunk_gradient() -> ChunkGradient:
    """`head_loss.chunk_gradient` in few passes over memory."""
    compiled: Callable[..., Any] = torch.compile(chunk_gradient, dynamic=True)
    return compiled


def allow_tf32(device: torch.device, allowed: bool = True) -> None:
    """Lets CUDA multiply what is left in fp32 with TF32's 10 bits, more than bf16 has."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed
