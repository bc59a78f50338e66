"""Which layers may be missing together: a beam search over sets, by what their absence does to the teacher's own
distribution.

A set's score is the divergence KL(teacher || teacher without the other layers) on the codes of the selection split.
Sets are shortened one layer at a time; the `beam_width` best of each size go on. Width 1 is the greedy search that
scores again after every cut, in the spirit of SLEB (arXiv 2402.09025) with the teacher's distribution in place of
perplexity. Layers that are each redundant are not redundant together, and the best pair need not hold the best single
(docs/LOG.md).
Legend: L layers, P target positions, V spoken vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from slimtts.decoding.generation import spoken_bias, spoken_head
from slimtts.decoding.teacher_forcing import ForcedBatch, hidden_states
from slimtts.teachers.base import SpeechTokenLayout

Layers = tuple[int, ...]


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
class ScoredSet:
    """Layers that stay, and what the loss of the others costs: KL from the full teacher, in nats a code."""

    retained: Layers
    divergence: float


def target_log_probabilities(model: Any, layout: SpeechTokenLayout, batch: ForcedBatch) -> torch.Tensor:
    """Log-probabilities over the spoken vocabulary at the target positions: [P, V]."""
    return _log_probabilities(hidden_states(model, batch), model, layout, batch)


def _log_probabilities(hidden: torch.Tensor, model: Any, layout: SpeechTokenLayout, batch: ForcedBatch) -> torch.Tensor:
    logits = F.linear(hidden[batch.is_target], spoken_head(model, layout), spoken_bias(model, layout))
    return F.log_softmax(logits.float(), dim=-1)


def _inputs_of_layers(model: Any, retained: Layers, batch: ForcedBatch) -> list[torch.Tensor]:
    """What each retained layer gets when the others are missing: one [B, T, D] a layer."""
    inputs: list[torch.Tensor] = []
    with with_layers(model, retained):
        handles = [
            layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in model.model.layers
        ]
        try:
            hidden_states(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    return inputs


def score_shorter_sets(
    model: Any,
    layout: SpeechTokenLayout,
    batches: Sequence[ForcedBatch],
    reference: Sequence[torch.Tensor],
    retained: Layers,
    cuts: Iterable[int],
) -> list[ScoredSet]:
    """`retained` without each one of the layers `cuts`; what lies below a cut layer is computed once for all."""
    sums = dict.fromkeys(sorted(cuts), 0.0)
    for batch, expected in zip(batches, reference, strict=True):
        inputs = _inputs_of_layers(model, retained, batch)
        for cut in sums:
            place = retained.index(cut)
            with with_layers(model, retained[place + 1 :]):
                hidden = model.model(inputs_embeds=inputs[place], use_cache=False).last_hidden_state
            got = _log_probabilities(hidden, model, layout, batch)
            sums[cut] += float(F.kl_div(got, expected, log_target=True, reduction="sum"))
    positions = sum(map(len, reference))
    return [ScoredSet(tuple(i for i in retained if i != cut), total / positions) for cut, total in sums.items()]


@torch.inference_mode()
def search_sets(
    model: Any,
    layout: SpeechTokenLayout,
    batches: Sequence[ForcedBatch],
    beam_width: int,
    finished: Sequence[Sequence[ScoredSet]] = (),
    after_level: Callable[[list[ScoredSet]], None] = lambda _: None,
) -> list[list[ScoredSet]]:
    """Levels 1, 2, .. L - 1: all sets with so many layers cut that were scored, best first.

    Continues after the levels that are `finished`; `after_level` is told each new one.
    """
    reference = [target_log_probabilities(model, layout, batch) for batch in batches]
    num_layers = len(model.model.layers)
    levels = [list(level) for level in finished]
    while len(levels) < num_layers - 1:
        parents = levels[-1][:beam_width] if levels else [ScoredSet(tuple(range(num_layers)), 0.0)]
        scored: dict[Layers, ScoredSet] = {}
        for parent in parents:
            new = [c for c in parent.retained if tuple(i for i in parent.retained if i != c) not in scored]
            for one in score_shorter_sets(model, layout, batches, reference, parent.retained, new):
                scored[one.retained] = one
        levels.append(sorted(scored.values(), key=lambda one: (one.divergence, one.retained)))
        after_level(levels[-1])
    return levels
