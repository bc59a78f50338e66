"""Speculative decoding: a draft, the student, proposes some codes; the target, its teacher, judges them in one pass.

A round costs `draft_length` passes of the draft and one of the target, and gives one code more than were taken. With
the exact rule the speech is distributed as the target's own. Both models speak after the same prompt, and may number
their tokens differently, as a student with a trimmed vocabulary does.
Legend: T tokens, K proposed codes of a round, V spoken vocabulary (codes + END).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from slimtts.decoding import ras
from slimtts.decoding.generation import Generated, codes_met, penalized, spoken_bias, spoken_head
from slimtts.decoding.speculative_rules import Block, Exact, Rule, make_rule
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt, SpeechTokenLayout, Teacher

DRAFT_LENGTH = 3


def truncated(probabilities: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """The likeliest ids of [T, V] as `generation.sample` limits them, renormalised; `top_k` 0 is no limit."""
    if top_p >= 1 and not top_k:
        return probabilities
    ordered, order = probabilities.sort(-1, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    if top_k:
        ordered[:, top_k:] = 0
    return torch.zeros_like(probabilities).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def distributions(
    logits: torch.Tensor, said: torch.Tensor, decoding: DecodingParams, met: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain decoder draws from at T successive places, [T, V] fp32, and the logits behind it.

    `said` [N] are the codes before the last place: the first place follows the first N - T + 1 of them. `met` [1, V]
    marks those of the prompt, for a repetition penalty, else None.
    """
    places = [said[: len(said) - len(logits) + 1 + place] for place in range(len(logits))]
    if met is not None:
        so_far = torch.cat([met.index_fill(1, before, True) for before in places])
        logits = penalized(logits, so_far, decoding.repetition_penalty)
    if decoding.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float(), logits
    whole = torch.softmax(logits / decoding.temperature, -1)
    p = truncated(whole, decoding.top_p, decoding.top_k)
    if decoding.repetition_aware:
        # A repetition is drawn again from the whole distribution, so its probability goes there.
        every = torch.arange(logits.shape[-1], device=logits.device)
        again = torch.stack([ras.is_repetition(every, before[None, -ras.WINDOW :]) for before in places])
        p = p.masked_fill(again, 0) + (p * again).sum(-1, keepdim=True) * whole
    return p, logits


def drawn(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One id a row of [T, V], never one without probability, decided on the device: the first of exponential clocks."""
    return (probabilities / torch.empty_like(probabilities).exponential_(generator=generator)).argmax(-1)


class Lane:
    """One of the two models with its cache: what is settled, and what is only proposed and may be dropped again."""

    def __init__(self, model: Any, layout: SpeechTokenLayout) -> None:
        self.model, self.layout = model, layout
        self.head, self.bias = spoken_head(model, layout), spoken_bias(model, layout)
        self.device = self.head.device
        self.begin(())

    def begin(self, prompt: Sequence[int]) -> None:
        """Forgets everything; `prompt` is settled."""
        self.settled, self.cached = list(prompt), 0
        self.cache = DynamicCache(config=self.model.config)

    def logits(self, proposed: torch.Tensor, places: int) -> torch.Tensor:
        """Of the last `places` tokens of everything settled and the codes `proposed` [K] behind it: [places, V] fp32.

        Only what is not in the cache is computed: at least `places` tokens must not be.
        """
        waiting = torch.tensor(self.settled[self.cached :], device=self.device, dtype=torch.long)
        ids = torch.cat([waiting, self._ids(proposed[max(0, self.cached - len(self.settled)) :])])
        hidden = self.model.model(input_ids=ids[None], past_key_values=self.cache, use_cache=True).last_hidden_state
        self.cached += len(ids)
        return torch.nn.functional.linear(hidden[0, -places:], self.head, self.bias).float()

    def settle(self, taken: int, codes: Sequence[int]) -> None:
        """`codes` are said; the first `taken` of those proposed are among them, and the others leave the cache."""
        kept = min(self.cached, len(self.settled) + taken)
        if kept < self.cached:
            self.cache.crop(kept - self.cached)
            self.cached = kept
        self.settled += self._ids(torch.tensor(codes)).tolist()

    def _ids(self, codes: torch.Tensor) -> torch.Tensor:
        is_end = codes == self.layout.num_codes
        return (codes + self.layout.first_code_id).masked_fill(is_end, self.layout.end_id)


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
        stops the generation.
        """
        end, device = self.target.layout.num_codes, self.target.device
        generator = torch.Generator(device).manual_seed(decoding.seed * 1_000_003 + row_seed)
        met = codes_met([prompt], self.target.layout).to(device) if decoding.repetition_penalty > 1 else None
        self.target.begin(prompt)
        self.draft.begin(prompt if draft_prompt is None else draft_prompt)
        said: list[int] = []
        while len(said) < decoding.max_new_tokens and said[-1:] != [end]:
            # A round says one code more than it takes.
            length = min(self.draft_length, decoding.max_new_tokens - len(said) - 1)
            proposed, taken, following = self._round(said, length, decoding, met, generator)
            if end in proposed:
                proposed = proposed[: proposed.index(end) + 1]
            taken = min(taken, len(proposed))
            codes = proposed[:taken]
            if end not in codes:
                codes.append(following)
            self.counts.add(len(proposed), taken, len(codes))
            said += codes
            for lane in (self.target, self.draft):
                lane.settle(taken, codes)
            yield tuple(codes)

    def _round(
        self,
        said: list[int],
        length: int,
        decoding: DecodingParams,
        met: torch.Tensor | None,
        generator: torch.Generator,
    ) -> tuple[list[int], int, int]:
        """`length` codes that the draft proposes after those said, how many are taken, and the code after those.

        Nothing waits for the device but the one copy at the end.
        """
        history = torch.tensor(said, device=self.target.device, dtype=torch.long)
        drafts = []
        for _ in range(length):
            logits = self.draft.logits(history[len(said) :], 1)
            drafts.append(distributions(logits, history, decoding, met)[0])
            history = torch.cat([history, drawn(drafts[-1], generator)])
        proposed = history[len(said) :]
        p, logits = distributions(self.target.logits(proposed, length + 1), history, decoding, met)
        taken, following = proposed.new_zeros(1), p
        if length:
            block = Block(proposed, torch.cat(drafts), p[:-1], logits[:-1])
            uniform = torch.rand(length, device=p.device, generator=generator)
            taken = self.rule.accepts(block, uniform).cumprod(0).sum(0, keepdim=True)
            following = torch.cat([self.rule.replacement(block), p[-1:]])
        chosen = drawn(following.gather(0, taken.unsqueeze(1).expand(1, p.shape[1])), generator)
        *codes, number, last = torch.cat([proposed, taken, chosen]).tolist()
        return codes, number, last

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
    return SpeculativeDecoder(
        Lane(target.model, target.layout), Lane(draft.model, draft.layout), judged_by, draft_length
    )


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
