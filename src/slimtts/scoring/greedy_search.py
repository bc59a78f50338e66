"""Greedy removal, re-scored after every cut: each time drop the layer whose absence hurts the teacher's own
distribution least.

The score is the divergence KL(teacher || teacher without the layers) on the codes of the selection split. Re-scoring
matters: layers that are each redundant are not redundant together (docs/LOG.md). In the spirit of SLEB
(arXiv 2402.09025), with the teacher's distribution in place of perplexity.
Legend: L layers, P target positions, V spoken vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from slimtts.decoding.generation import spoken_head
from slimtts.decoding.teacher_forcing import ForcedBatch, hidden_states
from slimtts.teachers.llasa import SpeechTokenLayout


@contextmanager
def without_layers(model: Any, dropped: Iterable[int]) -> Iterator[None]:
    """Within the block the model runs without these layers; restored on any exit."""
    layers = model.model.layers
    gone = set(dropped)
    model.model.layers = torch.nn.ModuleList(layer for i, layer in enumerate(layers) if i not in gone)
    model.model.config.num_hidden_layers = len(model.model.layers)
    try:
        yield
    finally:
        model.model.layers = layers
        model.model.config.num_hidden_layers = len(layers)


@dataclass(frozen=True)
class Cut:
    """One step of the search: the layer that went, and the divergence of every candidate at that step."""

    layer: int
    divergence: float
    candidates: dict[int, float]


def target_log_probabilities(model: Any, layout: SpeechTokenLayout, batch: ForcedBatch) -> torch.Tensor:
    """Log-probabilities over the spoken vocabulary at the target positions: [P, V]."""
    hidden = hidden_states(model, batch)[batch.is_target]
    return F.log_softmax(F.linear(hidden, spoken_head(model, layout)).float(), dim=-1)


@torch.inference_mode()
def greedy_search(
    model: Any,
    layout: SpeechTokenLayout,
    batches: Sequence[ForcedBatch],
    cuts: int,
    finished: Sequence[Cut] = (),
    after_cut: Callable[[Cut], None] = lambda _: None,
) -> list[Cut]:
    """`cuts` removals, continuing after those that are `finished`; `after_cut` is told each new one."""
    reference = [target_log_probabilities(model, layout, batch) for batch in batches]
    positions = sum(len(r) for r in reference)
    done = list(finished)
    while len(done) < cuts:
        dropped = [cut.layer for cut in done]
        candidates = {}
        for layer in range(len(model.model.layers)):
            if layer in dropped:
                continue
            with without_layers(model, [*dropped, layer]):
                total = sum(
                    float(F.kl_div(target_log_probabilities(model, layout, b), r, log_target=True, reduction="sum"))
                    for b, r in zip(batches, reference, strict=True)
                )
            candidates[layer] = total / positions
        best = min(candidates, key=lambda i: (candidates[i], i))
        done.append(Cut(best, candidates[best], candidates))
        after_cut(done[-1])
    return done
