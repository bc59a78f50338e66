"""What sets of layers cost in KL, with nothing computed twice and no distribution kept.

Two things make it cheap. Sets are worked off in dictionary order, and each goes on from the hidden states that it
shares with the one before: what lies below the first layer in which they differ. And with p the teacher's distribution
and the logits W h + b of the model without some layers, KL(p || softmax(W h + b)) = sum p log p - (p W) h - p b
+ logsumexp(W h + b): of the teacher only p W (as wide as a hidden state) and one number a position are kept, and of
the logits only their logsumexp, in chunks that stay in the processor's cache.
Legend: L layers, P target positions, V spoken vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from slimtts.decoding.generation import spoken_bias, spoken_head
from slimtts.decoding.teacher_forcing import ForcedBatch, hidden_states
from slimtts.model_weights import check_finite
from slimtts.teachers.base import SpeechTokenLayout

Layers = tuple[int, ...]
CPU_CHUNK, GPU_CHUNK = 128, 2048  # positions; 128 x 4,097 fp32 are 2 MB, see distill/head_loss.py


@contextmanager
def with_layers(model: Any, retained: Iterable[int]) -> Iterator[None]:
    """Within the block the model runs with these layers only; restored on any exit."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[i] for i in retained)
    model.model.config.num_hidden_layers = len(model.model.layers)
    try:
        yield
    finally:
        model.model.layers = layers
        model.model.config.num_hidden_layers = len(layers)


@dataclass(frozen=True)
class ExpectedSpeech:
    """The teacher on the targets of a batch: p W of every position, fp32 [P, D], and the sum of p log p - p b."""

    mean_row: torch.Tensor
    constant: float


def target_log_probabilities(model: Any, layout: SpeechTokenLayout, batch: ForcedBatch) -> torch.Tensor:
    """Log-probabilities over the spoken vocabulary at the target positions: [P, V]."""
    hidden = batch.at_targets(hidden_states(model, batch))
    logits = F.linear(hidden, spoken_head(model, layout), spoken_bias(model, layout))
    return F.log_softmax(logits.float(), dim=-1)


def expected_speech(model: Any, layout: SpeechTokenLayout, batch: ForcedBatch) -> ExpectedSpeech:
    """What the whole model expects."""
    head, bias = _head(model, layout)
    rows, constants = [], []
    for hidden in _in_chunks(batch.at_targets(hidden_states(model, batch)).float()):
        log_p = F.linear(hidden, head, bias).log_softmax(-1)
        p = log_p.exp()
        rows.append(p @ head)
        constants.append(torch.linalg.vecdot(p, log_p if bias is None else log_p - bias))
    return ExpectedSpeech(torch.cat(rows), float(torch.cat(constants).double().sum()))


def divergence_sums(
    model: Any, layout: SpeechTokenLayout, batch: ForcedBatch, expected: ExpectedSpeech, sets: Iterable[Layers]
) -> dict[Layers, float]:
    """For each set of layers: KL of the model with these alone, summed over the targets of a batch."""
    head, bias = _head(model, layout)
    return {
        retained: _divergence(batch.at_targets(hidden).float(), expected, head, bias)
        for retained, hidden in hidden_states_of_sets(model, batch, sets)
    }


def hidden_states_of_sets(
    model: Any, batch: ForcedBatch, sets: Iterable[Layers]
) -> Iterator[tuple[Layers, torch.Tensor]]:
    """Each set, in dictionary order, with the final hidden states [B, T, D] of the model with these layers alone."""
    before: Layers = ()
    inputs: list[torch.Tensor] = []  # of every layer of the set before
    for retained in sorted(sets):
        shared = _shared_prefix(before, retained) if inputs else 0
        # The input of the layer at the first difference is there: the set before had a layer at that place.
        start = {"inputs_embeds": inputs[shared]} if inputs else {"input_ids": batch.ids}
        del inputs[shared:]
        with with_layers(model, retained[shared:]), _inputs_added_to(inputs, model):
            hidden = model.model(**start, use_cache=False).last_hidden_state
        before = retained
        yield retained, hidden


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many layers both begin with, at most all but the last of `one`."""
    shared = 0
    while shared < min(len(one) - 1, len(other)) and one[shared] == other[shared]:
        shared += 1
    return shared


@contextmanager
def _inputs_added_to(inputs: list[torch.Tensor], model: Any) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in model.model.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _head(model: Any, layout: SpeechTokenLayout) -> tuple[torch.Tensor, torch.Tensor | None]:
    bias = spoken_bias(model, layout)
    return spoken_head(model, layout).float(), None if bias is None else bias.float()


def _divergence(hidden: torch.Tensor, expected: ExpectedSpeech, head: torch.Tensor, bias: torch.Tensor | None) -> float:
    normalizers = torch.cat([F.linear(chunk, head, bias).logsumexp(-1) for chunk in _in_chunks(hidden)])
    varying = normalizers.double() - torch.linalg.vecdot(expected.mean_row, hidden).double()
    divergence = expected.constant + varying.sum()
    check_finite("what the model says without some layers", divergence)
    return max(0.0, float(divergence))  # equal distributions may differ by a rounding


def _in_chunks(hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return hidden.split(CPU_CHUNK if hidden.device.type == "cpu" else GPU_CHUNK)
