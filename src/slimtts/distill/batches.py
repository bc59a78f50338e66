"""Training batches: a target utterance after a prompt of the same voice, drawn from the train split.

The batch of a step depends on the seed and the step alone, so a resumed run sees what an uninterrupted one sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from slimtts.data.batching import token_budget_batches
from slimtts.data.manifest import Utterance
from slimtts.data.prefetching import prefetched
from slimtts.decoding.guidance import UNGUIDED, Guidance, collate_passes, prompt_passes
from slimtts.decoding.teacher_forcing import (
    NO_TARGET,
    ForcedBatch,
    ForcedSequence,
    bistream_sequence,
    collate,
    forced_sequence,
)
from slimtts.distill.packing import PackedBatch, collate_packed, pack
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Prompt, StreamsText, Teacher

STEPS_A_POOL = 8


def part_of(batch: ForcedBatch, part: int, parts: int) -> ForcedBatch:
    """Rows `part`, `part + parts`, ... of a batch, as wide as it is.

    Where no row is left: the first one without targets, because processes must all run as many passes.
    """
    if part < len(batch.ids):
        return _each(batch, lambda one: rows_of(one, slice(part, None, parts)))
    return _each(
        batch,
        lambda one: replace(rows_of(one, slice(0, 1)), targets=torch.full_like(one.targets[:1], NO_TARGET)),
    )


def rows_of(batch: ForcedBatch, rows: slice | list[int]) -> ForcedBatch:
    """Some rows of a batch without its companions."""
    chosen = replace(batch, ids=batch.ids[rows], targets=batch.targets[rows])
    if isinstance(chosen, PackedBatch) and chosen.positions is not None:
        chosen = replace(chosen, positions=chosen.positions[rows])
    return chosen


def _each(batch: ForcedBatch, change: Callable[[ForcedBatch], ForcedBatch]) -> ForcedBatch:
    """The batch and its companions, changed alike."""
    text, voice = (one and change(one) for one in (batch.without_text, batch.without_voice))
    return replace(change(batch), without_text=text, without_voice=voice)


class PairSampler:
    """Endless batches of at most `tokens_per_step` padded tokens.

    Under guidance only the utterance's own codes are targets, and the batches carry the companions of the other passes.
    `bistream_share` of the pairs is laid out as text that arrives piece by piece, for teacher and student alike.
    With `packed_row_tokens` above 0, pairs share rows of so many tokens, and every batch has the same shape.
    """

    def __init__(
        self,
        teacher: Teacher,
        utterances: Sequence[Utterance],
        tokens_per_step: int,
        seed: int,
        guidance: Guidance = UNGUIDED,
        bistream_share: float = 0.0,
        packed_row_tokens: int = 0,
    ) -> None:
        if bistream_share and (guidance.companions or not isinstance(teacher.family, StreamsText)):
            raise InvalidInputError(
                "distill_student.bistream_share",
                f"{bistream_share} for family {teacher.family.name}, guidance {guidance.companions or 'off'}",
                "0, or cosyvoice2 without guidance",
                "correct it in params.yaml",
            )
        if packed_row_tokens and (guidance.companions or packed_row_tokens > tokens_per_step):
            raise InvalidInputError(
                "distill_student.packed_row_tokens",
                f"{packed_row_tokens} of {tokens_per_step} tokens a step, guidance {guidance.companions or 'off'}",
                "at most distill_student.tokens_per_step, without guidance",
                "correct it in params.yaml, or 0 for a row each",
            )
        self.bistream_share, self.packed_row_tokens = bistream_share, packed_row_tokens
        self.teacher, self.utterances, self.guidance = teacher, utterances, guidance
        self.tokens_per_step, self.seed = tokens_per_step, seed
        self.same_voice: dict[str, list[int]] = {}
        for index, utterance in enumerate(utterances):
            self.same_voice.setdefault(utterance.voice, []).append(index)

    def sequence(self, target: Utterance, prompt: Prompt, rng: np.random.Generator) -> ForcedSequence:
        """What is learned from one pair; a variant may draw from `rng`."""
        if self.bistream_share and rng.random() < self.bistream_share:
            streamed = bistream_sequence(self.teacher, target, prompt)
            if streamed is not None:
                return streamed
        return forced_sequence(self.teacher, target, prompt, prompt_is_target=not self.guidance.companions)

    def collated(self, sequences: Sequence[ForcedSequence], asked: Sequence[tuple[str, Prompt]]) -> ForcedBatch:
        """One batch of sequences; `asked` are the text and prompt of each."""
        pad_id = self.teacher.layout.pad_id
        if not self.guidance.companions:
            return collate(sequences, pad_id)
        passes = [prompt_passes(self.teacher, text, prompt) for text, prompt in asked]
        return collate_passes(sequences, passes, pad_id, self.guidance)

    def _pool(self, number: int) -> list[ForcedBatch]:
        rng = np.random.default_rng((self.seed, number))
        sequences, asked, tokens = [], [], 0
        while tokens < 1.1 * STEPS_A_POOL * self.tokens_per_step:
            target = self.utterances[int(rng.integers(len(self.utterances)))]
            spoken = self.utterances[int(rng.choice(self.same_voice[target.voice]))]
            prompt = Prompt(spoken.text, spoken.codes, spoken.voice)
            asked.append((target.text, prompt))
            sequences.append(self.sequence(target, prompt, rng))
            tokens += len(sequences[-1].ids)
        if self.packed_row_tokens:
            batches = self._packed(sequences, rng)
        else:
            groups = token_budget_batches([len(s.ids) for s in sequences], self.tokens_per_step)
            order = [int(i) for i in rng.permutation(len(groups))]
            batches = [self.collated([sequences[i] for i in groups[g]], [asked[i] for i in groups[g]]) for g in order]
        # A pool always gives the same number of steps, whatever the lengths: the step number finds its batch.
        return [batches[i % len(batches)] for i in range(STEPS_A_POOL)]

    def _packed(self, sequences: Sequence[ForcedSequence], rng: np.random.Generator) -> list[ForcedBatch]:
        """Batches of as many full rows as a step holds; the rows that are left over are not used."""
        width, a_step = self.packed_row_tokens, self.tokens_per_step // self.packed_row_tokens
        rows = [[sequences[i] for i in row] for row in pack([len(s.ids) for s in sequences], width)]
        order = [int(i) for i in rng.permutation(len(rows))]
        steps = [order[i : i + a_step] for i in range(0, len(order) - a_step + 1, a_step)]
        return [collate_packed([rows[i] for i in step], width, self.teacher.layout.pad_id) for step in steps]

    def from_step(self, first: int) -> Iterator[ForcedBatch]:
        """Batches of step `first`, `first` + 1, ...; the next pool is made on a thread while a device works on this."""
        number, skip = divmod(first, STEPS_A_POOL)
        for pool in prefetched(map(self._pool, itertools.count(number)), depth=1):
            yield from pool[skip:]
            skip = 0
