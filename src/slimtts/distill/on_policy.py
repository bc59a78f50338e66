"""Batches in which the student speaks and the teacher says what it would have said next.

A student that only ever continues recorded speech never learns to recover from its own slips; here its own codes are
the context, after a recorded prompt that keeps the voice, and only the teacher's distribution is learned from them.
Source: on-policy distillation, arXiv 2306.13649; for CosyVoice 2 arXiv 2509.17021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from slimtts.decoding.generation import generate_batch
from slimtts.decoding.teacher_forcing import ForcedBatch, ForcedSequence
from slimtts.distill.batches import PairSampler
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt, Teacher

RECORDED_FIRST = 0.5  # of the steps: before, the student says too little that is worth a comment


def speaks_itself(step: int, steps: int, share: float) -> bool:
    """Whether this step is on-policy: `share` of the steps after the first half, evenly spread."""
    if step < RECORDED_FIRST * steps:
        return False
    return int((step + 1) * share) > int(step * share)


class OnPolicyBatches:
    """The sampler's batches, `share` of those of the second half replaced by the student's own speech.

    The codes depend on seed, step and the student's weights at that step, so a resumed run hears the same.
    """

    def __init__(
        self, student: Any, teacher: Teacher, recorded: PairSampler, steps: int, share: float, max_new_tokens: int
    ) -> None:
        self.student, self.teacher, self.recorded = student, teacher, recorded
        self.steps, self.share = steps, share
        self.decoding = DecodingParams(
            temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens, batch_rows=1, seed=recorded.seed
        )

    def from_step(self, first: int) -> Iterator[ForcedBatch]:
        """Batches of step `first`, `first` + 1, ..."""
        for step, batch in enumerate(self.recorded.from_step(first), start=first):
            yield self.spoken(step, len(batch.ids)) if speaks_itself(step, self.steps, self.share) else batch

    def spoken(self, step: int, rows: int) -> ForcedBatch:
        """`rows` texts of the train split, spoken by the student as it is now."""
        sampler = self.recorded
        rng = np.random.default_rng((sampler.seed, step, 1))
        asked, before = [], []
        for _ in range(rows):
            target = sampler.utterances[int(rng.integers(len(sampler.utterances)))]
            voice = sampler.utterances[int(rng.choice(sampler.same_voice[target.voice]))]
            asked.append((target.text, Prompt(voice.text, voice.codes, voice.voice)))
            before.append(self.teacher.prompt_ids(*asked[-1]))
        seeds = [int(seed) for seed in rng.integers(2**31, size=rows)]
        made = generate_batch(self.student, self.teacher.layout, before, self.decoding, row_seeds=seeds)
        sequences = []
        for ids, said in zip(before, made, strict=True):
            end = (self.teacher.layout.num_codes,) if said.ended else ()
            spoken = (*ids, *self.teacher.layout.to_ids(said.codes))
            sequences.append(ForcedSequence(spoken, len(ids) - 1, (*said.codes, *end)))
        return replace(sampler.collated(sequences, asked), recorded=False)
