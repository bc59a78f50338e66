"""Which models are decoded by `LeanModel`, and its reuse from call to call while their weights stay the same.

A model's matrices are copied once, into a second set of the layers' and the spoken head's weights that lives as long as
the model. Any change of a weight (training, loading, another device) is seen by its version and its address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import LlamaModel, Qwen2Model
from transformers.utils import output_capturing

from slimtts.decoding.heads import spoken_bias, spoken_head
from slimtts.decoding.lean_model import LeanModel
from slimtts.decoding.row_slots import RowSlots
from slimtts.teachers.base import SpeechTokenLayout

# Rotary kinds whose angles depend on the position alone, so that a table of them is right at any length.
FIXED_ROTARY = ("default", "linear", "llama3", "yarn")
MOST_IDLE = 4  # slots kept for later calls; each holds a cache


def is_lean(model: Any) -> bool:
    """Whether `LeanModel` computes what the model's own forward does: known layers, plain weights, no hooks."""
    inner = model.model
    if type(inner) not in (LlamaModel, Qwen2Model) or not len(inner.layers):
        return False
    if inner.config.hidden_act != "silu" or inner.config.rope_parameters.get("rope_type") not in FIXED_ROTARY:
        return False
    if any(_has_hooks(module) for module in inner.modules()):
        return False
    for layer in inner.layers:
        attention, ffn = layer.self_attn, layer.mlp
        without_bias = (attention.o_proj, ffn.gate_proj, ffn.up_proj, ffn.down_proj)
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, *without_bias)
        if any(type(one) is not nn.Linear for one in linears) or any(one.bias is not None for one in without_bias):
            return False
        if getattr(attention, "sliding_window", None) is not None:
            return False
    weights = _weights(model)
    first = weights[0]
    if not first.is_floating_point():
        return False
    return all(type(w.data) is torch.Tensor and (w.dtype, w.device) == (first.dtype, first.device) for w in weights)


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody may change what it computes.

    transformers leaves hooks in a model that was once asked for hidden states or attentions; they only look.
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(hook.__module__ != output_capturing.__name__ for hook in hooks)


def _weights(model: Any) -> list[Any]:
    return [*model.model.parameters(), *model.get_output_embeddings().parameters()]


def _marks(weights: list[Any]) -> list[tuple[int, int, int]]:
    # Tensors made in inference mode count no versions; nobody trains those.
    return [(id(w), w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]


@dataclass(frozen=True)
class LeanPool:
    """A model laid out, and the slots of earlier calls that nobody uses now, by what they were made for."""

    lean: LeanModel
    marks: list[tuple[int, int, int]]
    weights: list[Any]  # held, so that no other tensor takes an id or address of the marks
    idle: list[tuple[Hashable, RowSlots]] = field(default_factory=list)

    @contextmanager
    def borrowed(self, key: Hashable, make: Callable[[], RowSlots]) -> Iterator[RowSlots]:
        """Slots of an earlier call with this key, else new ones; nobody else has them meanwhile. No key: never kept."""
        with _LOCK:
            found = next((at for at, (of, _) in enumerate(self.idle) if key is not None and of == key), None)
            slots = None if found is None else self.idle.pop(found)[1]
        if slots is None:
            slots = make()
        slots.clear()
        try:
            yield slots
        finally:
            if key is not None:
                with _LOCK:
                    self.idle.append((key, slots))
                    del self.idle[:-MOST_IDLE]

    def forget_prompts(self) -> None:
        """The next call of each kept slot computes its whole prompt: for measurements of a first call."""
        with _LOCK:
            for _, slots in self.idle:
                slots.forget_prompt()


_POOLS: WeakKeyDictionary[Any, dict[Hashable, LeanPool]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def lean_pool(model: Any, layout: SpeechTokenLayout, compiled: bool | None = None) -> LeanPool | None:
    """The pool of a model as its weights are now; None when `is_lean` says no.

    `compiled` has its layers compiled by `torch.compile` from now on (or no more): half a minute at the first call, for
    CUDA. None leaves that as it is; at first they are not.
    """
    if not is_lean(model):
        return None
    weights = _weights(model)
    marks = _marks(weights)
    with _LOCK:
        pools = _POOLS.setdefault(model, {})
        pool = pools.get(layout)
        wanted = compiled if compiled is not None else pool is not None and pool.lean.compiled
        if pool is None or pool.marks != marks or pool.lean.compiled != wanted:
            with torch.inference_mode():
                lean = LeanModel(model, spoken_head(model, layout), spoken_bias(model, layout), wanted)
            pool = pools[layout] = LeanPool(lean, marks, weights)
        return pool
