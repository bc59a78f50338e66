"""Speculative decoding: a draft, the student, proposes some codes; the target, its teacher, judges them in one pass.

A round costs `draft_length` passes of the draft and one of the target, and gives one code more than were taken. With
the exact rule the speech is distributed as the target's own. Both models speak after the same prompt, and may number
their tokens differently, as a student with a trimmed vocabulary does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from slimtts.decoding.generation import Generated
from slimtts.decoding.speculative_lanes import Lane, make_lane
from slimtts.decoding.speculative_round import Rounds
from slimtts.decoding.speculative_rules import Exact, Rule, make_rule
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt, Teacher

DRAFT_LENGTH = 3


@dataclass
class SpeculationCounts:
    """What became of the proposals. A round is one pass of the target; `codes` counts what was said, with ENDs.

    `proposed` and `taken` count by place in the block; what was drafted behind END counts as never proposed.
    """

    rounds: int = 0
    codes: int = 0
    proposed: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def add(self, proposed: int, taken: int, codes: int) -> None:
        """One round."""
        self.rounds += 1
        self.codes += codes
        missing = [0] * (proposed - len(self.proposed))
        self.proposed, self.taken = self.proposed + missing, self.taken + missing
        for place in range(proposed):
            self.proposed[place] += 1
            self.taken[place] += place < taken

    @property
    def acceptance(self) -> float:
        """Share of the proposed codes that were taken; 0 when none was proposed."""
        return sum(self.taken) / max(1, sum(self.proposed))

    @property
    def codes_per_target_pass(self) -> float:
        """1 for plain decoding; at most one more than the draft length."""
        return self.codes / max(1, self.rounds)


class SpeculativeDecoder:
    """Speaks as `target` does, or nearly so under a tolerant rule, with fewer passes of it; one utterance at a time.

    `counts` add up over everything that was said.

    Raises:
        InvalidInputError: the draft speaks other codes than the target, or the draft length is negative.
    """

    def __init__(self, target: Lane, draft: Lane, rule: Rule | None = None, draft_length: int = DRAFT_LENGTH) -> None:
        if draft.layout.num_codes != target.layout.num_codes:
            raise InvalidInputError(
                "draft",
                f"{draft.layout.num_codes} codes",
                f"{target.layout.num_codes}, as the target",
                "use a student of this teacher",
            )
        if draft_length < 0:
            raise InvalidInputError("draft length", draft_length, "0 or more", "try 3; 0 is plain decoding")
        self.target, self.draft, self.draft_length = target, draft, draft_length
        self.rule = Exact() if rule is None else rule
        self.counts = SpeculationCounts()
        self._rounds: Rounds | None = None

    @torch.inference_mode()
    def rounds(
        self,
        prompt: Sequence[int],
        decoding: DecodingParams,
        row_seed: int = 0,
        draft_prompt: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, ...]]:
        """What each round says, one code or more, `num_codes` for END; until END or `max_new_tokens` codes.

        `draft_prompt` is the prompt in the draft's ids, where it numbers its tokens differently. Closing the iterator
        stops the generation; a decoder speaks one utterance at a time.
        """
        end, limit, said, ended = self.target.layout.num_codes, decoding.max_new_tokens, 0, False
        draft_prompt = prompt if draft_prompt is None else draft_prompt
        longest = max(len(prompt), len(draft_prompt)) + limit
        if self._rounds is None or self._rounds.decoding != decoding or self._rounds.room < longest:
            self._rounds = Rounds(self.target, self.draft, self.rule, self.draft_length, decoding, longest)
        self._rounds.begin(prompt, draft_prompt, row_seed)
        while said < limit and not ended:
            proposed, taken, following = self._rounds.next()
            # What is drafted behind END or the limit was never proposed.
            proposed = proposed[: limit - said]
            if end in proposed:
                proposed = proposed[: proposed.index(end) + 1]
            taken = min(taken, len(proposed))
            codes = proposed[:taken]
            if end not in codes and said + taken < limit:
                codes.append(following)
            ended, said = end in codes, said + len(codes)
            self.counts.add(len(proposed), taken, len(codes))
            yield tuple(codes)

    def stream(
        self,
        prompt: Sequence[int],
        decoding: DecodingParams,
        row_seed: int = 0,
        draft_prompt: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """The codes one by one without END, as `streaming.stream_codes` gives those of a single model."""
        for codes in self.rounds(prompt, decoding, row_seed, draft_prompt):
            yield from (code for code in codes if code != self.target.layout.num_codes)

    def generate(
        self,
        prompt: Sequence[int],
        decoding: DecodingParams,
        row_seed: int = 0,
        draft_prompt: Sequence[int] | None = None,
    ) -> Generated:
        """All of it."""
        codes = [code for said in self.rounds(prompt, decoding, row_seed, draft_prompt) for code in said]
        ended = self.target.layout.num_codes in codes
        return Generated(tuple(codes[:-1] if ended else codes), ended)


def speculative_decoder(
    target: Teacher, draft: Teacher, rule: str = "exact", draft_length: int = DRAFT_LENGTH
) -> SpeculativeDecoder:
    """A decoder for two loaded models of one family; a rule as `make_rule` names it. See `speak_with_draft`."""
    judged_by = make_rule(rule, target.model, target.layout)
    lanes = (make_lane(target.model, target.layout), make_lane(draft.model, draft.layout))
    return SpeculativeDecoder(lanes[0], lanes[1], judged_by, draft_length)


def speak_with_draft(
    target: Teacher,
    draft: Teacher,
    text: str,
    prompt: Prompt,
    decoding: DecodingParams,
    rule: str = "exact",
    draft_length: int = DRAFT_LENGTH,
) -> tuple[Generated, SpeculationCounts]:
    """The codes of a text by a target and its student as draft; a rule as `make_rule` names it.

    Raises:
        InvalidInputError: no such rule, a negative draft length, or a draft that speaks other codes.
    """
    decoder = speculative_decoder(target, draft, rule, draft_length)
    spoken = decoder.generate(target.prompt_ids(text, prompt), decoding, draft_prompt=draft.prompt_ids(text, prompt))
    return spoken, decoder.counts
