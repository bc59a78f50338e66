"""Which layers may be missing together: a beam search over sets, by what their absence does to the teacher's own
distribution.

A set's score is the divergence KL(teacher || teacher without the other layers) on the codes of the selection split.
Sets are shortened one layer at a time; the `beam_width` best of each size go on. Width 1 is the greedy search that
scores again after every cut, in the spirit of SLEB (arXiv 2402.09025) with the teacher's distribution in place of
perplexity. Layers that are each redundant are not redundant together, and the best pair need not hold the best single
(docs/LOG.md).
Sets that begin with the same layers share what these compute, and no distribution is kept: `shared_prefix`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.errors import InvalidInputError
from slimtts.scoring.shared_prefix import Layers, divergence_sums, expected_speech
from slimtts.scoring.ties import are_equal
from slimtts.teachers.base import SpeechTokenLayout

# One batch under all sets of a level: set -> KL, summed over the batch's targets.
Measurement = Callable[[], dict[Layers, float]]


@dataclass(frozen=True)
class ScoredSet:
    """Layers that stay, and what the loss of the others costs: KL from the full teacher, in nats a code."""

    retained: Layers
    divergence: float


def as_good_as_best(level: Sequence[ScoredSet]) -> list[list[int]]:
    """The sets of a level, best first, that are as good as its first."""
    return [list(one.retained) for one in level if are_equal(one.divergence, level[0].divergence)]


def measured_here(jobs: Mapping[str, Measurement]) -> dict[str, dict[Layers, float]]:
    """All jobs, one after the other."""
    return {name: job() for name, job in jobs.items()}


def shortened(parents: Sequence[Layers]) -> list[Layers]:
    """Every set that loses one layer of one of the parents, once."""
    return sorted({(*parent[:place], *parent[place + 1 :]) for parent in parents for place in range(len(parent))})


@torch.inference_mode()
def search_sets(
    model: Any,
    layout: SpeechTokenLayout,
    batches: Sequence[ForcedBatch],
    beam_width: int,
    measured: Callable[[Mapping[str, Measurement]], Mapping[str, Mapping[Layers, float]]] = measured_here,
    after_level: Callable[[list[ScoredSet]], None] = lambda _: None,
) -> list[list[ScoredSet]]:
    """Levels 1, 2, .. L - 1: all sets with so many layers cut that were scored, best first.

    A level's measurements, one a batch, are independent: `measured` may keep them or share them out.
    `after_level` is told each level.

    Raises:
        InvalidInputError: a divergence is not finite: nothing can be ranked by it.
    """
    num_layers, positions = len(model.model.layers), sum(int(batch.is_target.sum()) for batch in batches)
    expected = cache(lambda index: expected_speech(model, layout, batches[index]))

    def measure(index: int, sets: Sequence[Layers]) -> dict[Layers, float]:
        return divergence_sums(model, layout, batches[index], expected(index), sets)

    levels: list[list[ScoredSet]] = []
    while len(levels) < num_layers - 1:
        parents = [one.retained for one in levels[-1][:beam_width]] if levels else [tuple(range(num_layers))]
        sets = shortened(parents)
        jobs: dict[str, Measurement] = {
            f"cut-{len(levels) + 1:02d}-batch-{index:03d}": partial(measure, index, sets)
            for index in range(len(batches))
        }
        found = measured(jobs)
        level = [ScoredSet(one, sum(found[name][one] for name in jobs) / positions) for one in sets]
        wrong = [one for one in level if not math.isfinite(one.divergence)]
        if wrong:
            raise InvalidInputError(
                f"divergence of the teacher with layers {list(wrong[0].retained)} alone", wrong[0].divergence,
                "a finite number", "check the teacher's weights: say something with it",
            )  # fmt: skip
        levels.append(sorted(level, key=lambda one: (one.divergence, one.retained)))
        after_level(levels[-1])
    return levels
