"""How many layers the student may have: the most that stay within every limit of params.yaml.

What a model costs is a line in its depth: a part that does not change (embeddings, head, the loop around the model)
and as much again for every layer. Parameters are counted; seconds a token are measured at full and at half depth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from slimtts.decoding.generation import spoken_head
from slimtts.decoding.lean_pool import lean_pool
from slimtts.decoding.row_slots import Ask, RowSlots
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams
from slimtts.pruning.plan import check_keep_layers
from slimtts.pruning.surgery import remove_layers
from slimtts.teachers.base import SpeechTokenLayout

PROMPT_TOKENS = 32
DECODED_TOKENS = 24
WARM_UP_ROUNDS = 2
ROUNDS = 9


@dataclass(frozen=True)
class DepthCost:
    """fixed + each_layer * layers, in whatever unit `teacher`, the whole teacher's cost, has."""

    fixed: float
    each_layer: float
    teacher: float

    def share(self, layers: int) -> float:
        """Of the teacher's cost."""
        return (self.fixed + self.each_layer * layers) / self.teacher


@dataclass(frozen=True)
class Limit:
    """A knob of params.yaml and the cost that it bounds."""

    knob: str
    at_most: float
    cost: DepthCost

    def allows(self, layers: int) -> bool:
        """Whether a student of this depth keeps within the limit."""
        return self.cost.share(layers) <= self.at_most


def most_layers(keep_layers: int, num_layers: int, limits: Sequence[Limit]) -> int:
    """The greatest depth, at most `keep_layers`, that every limit allows.

    Raises:
        InvalidInputError: `keep_layers` is not a depth of this teacher, or no depth is within the limits.
    """
    check_keep_layers(keep_layers, num_layers)
    for layers in range(keep_layers, 0, -1):
        if all(limit.allows(layers) for limit in limits):
            return layers
    tightest = min(limits, key=lambda limit: limit.at_most - limit.cost.share(1))
    raise InvalidInputError(
        tightest.knob,
        tightest.at_most,
        f"at least {tightest.cost.share(1):.4f}, the share of one layer",
        "raise it, or lower prune_layers.ffn_share",
    )


def parameter_cost(teacher_model: Any, full_depth: Any) -> DepthCost:
    """Parameters of students cut from `full_depth`: the teacher, or the teacher with a narrower FFN."""
    total, layers = full_depth.num_parameters(), full_depth.model.layers
    each = sum(parameter.numel() for parameter in layers[0].parameters())
    return DepthCost(total - each * len(layers), each, teacher_model.num_parameters())


def line_through(full: tuple[int, float], part: tuple[int, float]) -> tuple[float, float]:
    """Fixed part and part of each layer, from two depths with their costs.

    Noise cannot make a layer cost less than nothing, and one depth alone tells nothing of a layer.
    """
    each = max(0.0, (full[1] - part[1]) / max(1, full[0] - part[0]))
    return full[1] - each * full[0], each


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def seconds_a_token(model: Any, layout: SpeechTokenLayout) -> float:
    """One utterance: mean over decoded tokens, batch 1 with the key/value cache, after an untimed prompt.

    By the decoder that will speak: on CUDA its recorded steps. END does not end it.
    """
    pool = lean_pool(model, layout)
    if pool is None:
        return _seconds_by_own_forward(model, layout)
    decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=2 * DECODED_TOKENS, batch_rows=1, seed=0)
    slots = RowSlots(pool.lean, layout, decoding, 1, PROMPT_TOKENS + 2 * DECODED_TOKENS)
    slots.admit([Ask(0, ([layout.first_code_id] * PROMPT_TOKENS,), 0)])
    slots.advance()  # records the step on CUDA
    started, timed = _now_s(model.device), 0
    while timed < DECODED_TOKENS:
        timed += slots.advance()
    return (_now_s(model.device) - started) / timed


def _seconds_by_own_forward(model: Any, layout: SpeechTokenLayout) -> float:
    head, cache = spoken_head(model, layout), DynamicCache(config=model.config)
    ids = torch.full((1, PROMPT_TOKENS), layout.first_code_id, device=model.device)
    model.model(input_ids=ids, past_key_values=cache, use_cache=True)
    started = _now_s(model.device)
    for _ in range(DECODED_TOKENS):
        hidden = model.model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).last_hidden_state
        int(F.linear(hidden[0, -1], head).argmax())
    return (_now_s(model.device) - started) / DECODED_TOKENS


def median_seconds(models: Sequence[Any], layout: SpeechTokenLayout) -> list[float]:
    """Seconds a token of each model, after warm-up; they take turns, so that a busy machine slows all alike."""
    for _ in range(WARM_UP_ROUNDS):
        for model in models:
            seconds_a_token(model, layout)
    rounds = [[seconds_a_token(model, layout) for model in models] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def latency_cost(teacher_model: Any, full_depth: Any, layout: SpeechTokenLayout) -> DepthCost:
    """Seconds a decoded token of students cut from `full_depth`, measured on this machine."""
    depth = full_depth.config.num_hidden_layers
    half_depth = max(1, depth // 2)
    half = remove_layers(full_depth, range(half_depth))
    models = [full_depth, half] if full_depth is teacher_model else [full_depth, half, teacher_model]
    seconds = median_seconds(models, layout)
    teacher_s = seconds[models.index(teacher_model)]
    return DepthCost(*line_through((depth, seconds[0]), (half_depth, seconds[1])), teacher_s)
