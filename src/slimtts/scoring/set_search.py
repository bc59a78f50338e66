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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional as F

from slimtts.decoding.generation import spoken_bias, spoken_head
from slimtts.decoding.teacher_forcing import ForcedBatch, hidden_states
from slimtts.teachers.base import SpeechTokenLayout

Layers = tuple[int, ...]
# One set's shorter sets on one batch: layer that is cut -> KL, summed over the targets.
Measurement = Callable[[], dict[int, float]]


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


def divergence_sums(
    model: Any,
    layout: SpeechTokenLayout,
    batch: ForcedBatch,
    expected: torch.Tensor,
    retained: Layers,
    cuts: Iterable[int],
) -> dict[int, float]:
    """For each layer of `cuts`: KL of the model with `retained` but that layer, summed over the targets of a batch.

    What lies below a cut layer is computed once for all.
    """
    inputs, sums = _inputs_of_layers(model, retained, batch), {}
    for cut in sorted(cuts):
        place = retained.index(cut)
        with with_layers(model, retained[place + 1 :]):
            hidden = model.model(inputs_embeds=inputs[place], use_cache=False).last_hidden_state
        got = _log_probabilities(hidden, model, layout, batch)
        sums[cut] = float(F.kl_div(got, expected, log_target=True, reduction="sum"))
    return sums


def measured_here(jobs: Mapping[str, Measurement]) -> dict[str, dict[int, float]]:
    """All jobs, one after the other."""
    return {name: job() for name, job in jobs.items()}


@torch.inference_mode()
def search_sets(
    model: Any,
    layout: SpeechTokenLayout,
    batches: Sequence[ForcedBatch],
    beam_width: int,
    measured: Callable[[Mapping[str, Measurement]], Mapping[str, Mapping[int, float]]] = measured_here,
    after_level: Callable[[list[ScoredSet]], None] = lambda _: None,
) -> list[list[ScoredSet]]:
    """Levels 1, 2, .. L - 1: all sets with so many layers cut that were scored, best first.

    A level's measurements, one a set and batch, are independent: `measured` may keep them or share them out.
    `after_level` is told each level.
    """
    num_layers, positions = len(model.model.layers), sum(int(batch.is_target.sum()) for batch in batches)
    expected = cache(lambda index: target_log_probabilities(model, layout, batches[index]))

    def measure(index: int, retained: Layers, cuts: Sequence[int]) -> dict[int, float]:
        return divergence_sums(model, layout, batches[index], expected(index), retained, cuts)

    levels: list[list[ScoredSet]] = []
    while len(levels) < num_layers - 1:
        parents = [one.retained for one in levels[-1][:beam_width]] if levels else [tuple(range(num_layers))]
        made_by: dict[Layers, tuple[int, int]] = {}  # set -> its first parent, and the layer that this one loses
        for place, parent in enumerate(parents):
            for cut in parent:
                made_by.setdefault(tuple(i for i in parent if i != cut), (place, cut))
        jobs: dict[str, Measurement] = {}
        for place, parent in enumerate(parents):
            cuts = [cut for of, cut in made_by.values() if of == place]
            for index in range(len(batches) if cuts else 0):
                jobs[_job(levels, place, index)] = partial(measure, index, parent, cuts)
        found = measured(jobs)
        level = []
        for retained, (place, cut) in made_by.items():
            total = sum(found[_job(levels, place, index)][cut] for index in range(len(batches)))
            level.append(ScoredSet(retained, total / positions))
        levels.append(sorted(level, key=lambda one: (one.divergence, one.retained)))
        after_level(levels[-1])
    return levels


def _job(levels: Sequence[object], parent: int, batch: int) -> str:
    return f"cut-{len(levels) + 1:02d}-set-{parent:02d}-batch-{batch:03d}"
