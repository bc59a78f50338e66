"""Where a system agrees with its teacher: on recorded codes, position by position.

Both models are told the recorded codes up to a position and say what comes next. Cheap, as one pass over the sentences
is enough, and it shows what WER cannot: whether a student drifts away late in long sentences.
Legend: P target positions of a batch, V spoken vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from slimtts.data.batching import token_budget_batches
from slimtts.data.manifest import Utterance
from slimtts.decoding.generation import spoken_bias, spoken_head
from slimtts.decoding.teacher_forcing import ForcedBatch, collate, forced_sequence, hidden_states
from slimtts.evaluation.statistics import bootstrap_mean
from slimtts.results import AgreementBin, Interval, SystemAgreement
from slimtts.teachers.base import Prompt, Teacher

TOKENS_PER_BATCH = 4096
ROWS_AT_ONCE = 512  # bounds the memory of two [P, V] to 260 MB with 65,536 codes
BINS = 16


@dataclass(frozen=True)
class PositionAgreement:
    """One utterance: at each of its targets, codes and END, whether the most likely is the same (0 or 1), and KL."""

    same: np.ndarray
    kl_nats: np.ndarray


@torch.inference_mode()
def position_agreement(
    teacher: Teacher, system: Teacher, spoken: Sequence[tuple[Utterance, Prompt]]
) -> list[PositionAgreement]:
    """One for each utterance, in their order. The system may have a tokenizer of its own, not other codes."""
    expected = [forced_sequence(teacher, utterance, prompt) for utterance, prompt in spoken]
    own = [forced_sequence(system, utterance, prompt) for utterance, prompt in spoken]
    lengths = [max(len(a.ids), len(b.ids)) for a, b in zip(expected, own, strict=True)]
    found: dict[int, PositionAgreement] = {}
    for group in token_budget_batches(lengths, TOKENS_PER_BATCH):
        theirs = _targets(teacher, collate([expected[i] for i in group], teacher.layout.pad_id))
        ours = _targets(system, collate([own[i] for i in group], system.layout.pad_id))
        same, kl_nats = _compare(theirs, _head(teacher), ours, _head(system))
        stops = np.cumsum([len(expected[i].targets) for i in group])[:-1]
        parts = zip(group, np.split(same, stops), np.split(kl_nats, stops), strict=True)
        found |= {i: PositionAgreement(a, b) for i, a, b in parts}
    return [found[i] for i in range(len(spoken))]


Head = tuple[torch.Tensor, torch.Tensor | None]


def _head(system: Teacher) -> Head:
    return spoken_head(system.model, system.layout), spoken_bias(system.model, system.layout)


def _targets(system: Teacher, batch: ForcedBatch) -> torch.Tensor:
    """Hidden states at the targets, utterance after utterance: [P, D]."""
    batch = batch.to(next(system.model.parameters()).device)
    return hidden_states(system.model, batch)[batch.is_target]


def _compare(
    theirs: torch.Tensor, their_head: Head, ours: torch.Tensor, our_head: Head
) -> tuple[np.ndarray, np.ndarray]:
    """[P] and [P], from [P, D] and [P, D]; the logits of a few rows at a time."""
    same, kl_nats = [], []
    for a, b in zip(theirs.split(ROWS_AT_ONCE), ours.split(ROWS_AT_ONCE), strict=True):
        p = F.log_softmax(F.linear(a, *their_head).float(), dim=-1)
        q = F.log_softmax(F.linear(b, *our_head).float(), dim=-1).to(p.device)
        same.append(p.argmax(-1) == q.argmax(-1))
        kl_nats.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
    return torch.cat(same).float().cpu().numpy(), torch.cat(kl_nats).cpu().numpy()


def summarize_agreement(found: Sequence[PositionAgreement], samples: int, seed: int) -> SystemAgreement:
    """Means over utterances, all positions together and in at most 16 bins of equal width.

    Raises:
        InvalidInputError: no utterances.
    """
    longest = max((len(one.same) for one in found), default=0)
    width = -(-longest // BINS)
    bins = []
    for first in range(0, longest, max(1, width)):
        inside = slice(first, first + width)
        there = [PositionAgreement(o.same[inside], o.kl_nats[inside]) for o in found if len(o.same) > first]
        top1, kl_nats = _means(there, samples, seed)
        last = min(first + width, longest) - 1
        bins.append(AgreementBin(first=first, last=last, utterances=len(there), top1=top1, kl_nats=kl_nats))
    top1, kl_nats = _means(found, samples, seed)
    return SystemAgreement(top1=top1, kl_nats=kl_nats, bins=bins)


def _means(found: Sequence[PositionAgreement], samples: int, seed: int) -> tuple[Interval, Interval]:
    same = bootstrap_mean([float(one.same.mean()) for one in found], samples, seed)
    return same, bootstrap_mean([float(one.kl_nats.mean()) for one in found], samples, seed)
