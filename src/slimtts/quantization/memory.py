"""What a model's weights take, part by part, in the form they have now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@dataclass(frozen=True)
class PartSize:
    """Parameters, and the bytes that they take."""

    parameters: int
    bytes: int


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor: of one that is made of others (8 bit and its scales, packed 2:4), those of all of them."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


def weight_sizes(model: Any) -> dict[str, PartSize]:
    """By part: embeddings, layers (their linear layers and norms), head, rest (the final norm). Shared ones once.

    A head that shares the embeddings' weights has size 0.
    """
    parts = {"embeddings": [0, 0], "layers": [0, 0], "head": [0, 0], "rest": [0, 0]}
    head = {id(parameter) for parameter in model.get_output_embeddings().parameters()}
    embedding = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    for name, parameter in model.named_parameters():  # which gives each only once
        of_head = "head" if id(parameter) in head else "rest"
        part = "embeddings" if id(parameter) in embedding else "layers" if ".layers." in name else of_head
        parts[part][0] += parameter.numel()
        parts[part][1] += stored_bytes(parameter)
    return {part: PartSize(*counts) for part, counts in parts.items()}


def weight_bytes(model: Any) -> int:
    """Bytes of all weights."""
    return sum(part.bytes for part in weight_sizes(model).values())
