"""Where a system agrees with its teacher: on recorded codes, position by position.

Both models are told the recorded codes up to a position and say what comes next. Cheap, as one pass over the sentences
is enough, and it shows what WER cannot: whether a student drifts away late in long sentences.
Legend: P target positions of a batch, V spoken vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from slimtts.data.batching import token_budget_batches
from slimtts.data.manifest import Utterance
from slimtts.decoding.generation import spoken_bias, spoken_head
from slimtts.decoding.teacher_forcing import collate, forced_sequence, hidden_states
from slimtts.evaluation.statistics import bootstrap_mean
from slimtts.quantization.placement import place_for_speech
from slimtts.results import AgreementBin, AgreementReport, Interval, SystemAgreement
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.loading import load_beside

TOKENS_PER_BATCH = 4096
ROWS_AT_ONCE = 512  # bounds the memory of two [P, V] to 260 MB with 65,536 codes
BINS = 16


@dataclass(frozen=True)
class PositionAgreement:
    """One utterance: at each of its targets, codes and END, whether the most likely is the same (0 or 1), and KL."""

    same: np.ndarray
    kl_nats: np.ndarray


@dataclass(frozen=True)
class TargetStates:
    """What a model's head sees at the targets of every utterance, [P, D] each, and the head's rows that are spoken."""

    states: list[torch.Tensor]
    head: torch.Tensor
    bias: torch.Tensor | None

    def log_probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """[P, D] -> [P, V]."""
        return F.log_softmax(F.linear(states, self.head, self.bias).float(), dim=-1)


def measure_agreement(
    teacher: Teacher,
    folders: Mapping[str, Path],
    spoken: Sequence[tuple[Utterance, Prompt]],
    samples: int,
    seed: int,
) -> AgreementReport:
    """Every checkpoint of `folders` beside the teacher's own, one model in memory at a time.

    Raises:
        InvalidInputError: no utterances, or a folder without a complete checkpoint.
    """

    def states(folder: Path) -> TargetStates:
        system = load_beside(teacher, folder)
        place_for_speech(system.model)
        return target_states(system, spoken)

    expected, systems = states(teacher.folder), {}
    for name, folder in folders.items():
        found = position_agreement(expected, states(folder))
        systems[name] = summarize_agreement(found, samples, seed)
    return AgreementReport(utterances=len(spoken), systems=systems)


@torch.inference_mode()
def target_states(system: Teacher, spoken: Sequence[tuple[Utterance, Prompt]]) -> TargetStates:
    """Told the recorded codes; on the CPU in fp32, whatever the model runs on."""
    sequences = [forced_sequence(system, utterance, prompt) for utterance, prompt in spoken]
    states: dict[int, torch.Tensor] = {}
    for group in token_budget_batches([len(s.ids) for s in sequences], TOKENS_PER_BATCH):
        batch = collate([sequences[i] for i in group], system.layout.pad_id)
        batch = batch.to(next(system.model.parameters()).device)
        hidden = batch.at_targets(hidden_states(system.model, batch)).cpu().float()
        states |= zip(group, hidden.split([len(sequences[i].targets) for i in group]), strict=True)
    head, bias = spoken_head(system.model, system.layout), spoken_bias(system.model, system.layout)
    bias = None if bias is None else bias.cpu().float()
    return TargetStates([states[i] for i in range(len(spoken))], head.cpu().float(), bias)


@torch.inference_mode()
def position_agreement(theirs: TargetStates, ours: TargetStates) -> list[PositionAgreement]:
    """One for each utterance, in their order. Both speak the same codes, whatever their tokenizers."""
    same, kl_nats = [], []
    pairs = zip(torch.cat(theirs.states).split(ROWS_AT_ONCE), torch.cat(ours.states).split(ROWS_AT_ONCE), strict=True)
    for their_rows, our_rows in pairs:
        p, q = theirs.log_probabilities(their_rows), ours.log_probabilities(our_rows)
        same.append(p.argmax(-1) == q.argmax(-1))
        kl_nats.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
    stops = np.cumsum([len(one) for one in theirs.states])[:-1]
    columns = (np.split(torch.cat(column).float().numpy(), stops) for column in (same, kl_nats))
    return [PositionAgreement(*one) for one in zip(*columns, strict=True)]


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
