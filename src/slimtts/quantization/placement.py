"""A model of any variant on a device: like `model.to`, and what its kernels need there.

torchao's 8-bit tensors remember the precision that they stand for, and `model.to` does not change it; float8 weights
are multiplied only with activations of that precision. 2:4 sparse weights become tensors with kernels of their own on
CUDA in 16 bit, where the layer's shape allows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slimtts.machine import prepare_cuda
from slimtts.quantization.sparsity import decoder_linears, is_two_of_four

SPARSE_TYPES = (torch.float16, torch.bfloat16)
SPARSE_SHAPE = (32, 64)  # outputs and inputs divide by these; CUTLASS's limits for 16 bit in torch 2.11


def place(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The same model, moved; weights of the decoder's linear layers in the form that is fastest to use there."""
    prepare_cuda(device)
    angles = rotary_buffers(model)
    model.to(device=device, dtype=dtype)
    for module, name, buffer in angles:  # in bf16 an angle at position 1,000 is wrong by 0.44 rad
        setattr(module, name, buffer.to(device))
    for linear in decoder_linears(model).values():
        linear.weight = nn.Parameter(_usable(linear.weight.detach(), dtype), requires_grad=False)
    return model


def rotary_buffers(model: Any) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """The frequencies of its rotary embeddings, which stay in fp32 whatever the weights are in."""
    return [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in ("inv_freq", "original_inv_freq")
    ]


def place_for_speech(model: Any) -> Any:
    """The same model where it speaks fastest: on CUDA in bf16 when a device is visible, else as it is."""
    return place(model, torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else model


def _usable(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    from torchao.quantization import Float8Tensor, Int8Tensor

    if isinstance(weight, Int8Tensor):
        return Int8Tensor(weight.qdata, weight.scale, weight.block_size, dtype, zero_point=weight.zero_point)
    if isinstance(weight, Float8Tensor):
        return Float8Tensor(weight.qdata, weight.scale, block_size=weight.block_size, dtype=dtype)
    if weight.is_cuda and dtype in SPARSE_TYPES and has_sparse_kernel(weight):
        return torch.sparse.to_sparse_semi_structured(weight)
    return weight


def has_sparse_kernel(weight: torch.Tensor) -> bool:
    """Whether a 16-bit weight of this shape and with these zeros can be packed as 2:4."""
    fits = all(size % step == 0 for size, step in zip(weight.shape, SPARSE_SHAPE, strict=True))
    return fits and is_two_of_four(weight)
