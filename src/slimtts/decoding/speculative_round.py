"""One round of speculative decoding: the draft proposes, the target judges. All state is on the device.

Places are counted from what has been said: 0 is that of the first proposed code. On a CPU the host knows where that is;
on CUDA, with two lean lanes, a round is a recorded graph and finds it in the state.
Legend: T places, K proposed codes, V spoken vocabulary (codes + END), W codes of the repetition window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimtts.decoding import ras
from slimtts.decoding.cuda_graphs import StepGraphs
from slimtts.decoding.row_slots import COLUMN_MULTIPLE
from slimtts.decoding.sampling import codes_met
from slimtts.decoding.speculative_distributions import distributions, drawn
from slimtts.decoding.speculative_lanes import Lane, LeanLane, Place
from slimtts.decoding.speculative_rules import Block, Rule
from slimtts.params import DecodingParams

WIDTH_STEP = 256  # columns: attention in a graph reads a multiple of it


class Rounds:
    """Rounds for one way of decoding, of utterances that take at most `longest` tokens with their prompts."""

    def __init__(
        self, target: Lane, draft: Lane, rule: Rule, length: int, decoding: DecodingParams, longest: int
    ) -> None:
        self.target, self.draft, self.rule, self.length, self.decoding = target, draft, rule, length, decoding
        self.room = -(-longest // WIDTH_STEP) * WIDTH_STEP
        with target.device:
            more = 3 * (length + 1)  # a round may go past the end, and a recording rehearses two
            self._told = torch.zeros(1, dtype=torch.long)
            self._said = torch.zeros(ras.WINDOW + self.room + more, dtype=torch.long)
            self._met = torch.zeros(1, target.layout.num_codes + 1, dtype=torch.bool)
            self._uniforms = torch.zeros(decoding.max_new_tokens + more, 2 * length + 1)
            self._report = torch.zeros(length + 2, dtype=torch.long)
        for lane in (target, draft):
            lane.reserve(-(-(self.room + more) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE)
        self._graphs: StepGraphs | None = None
        if target.device.type == "cuda" and isinstance(target, LeanLane) and isinstance(draft, LeanLane):
            self._graphs = StepGraphs(self._round, [self._told, self._said, self._met, target.ids, draft.ids])

    def begin(self, prompt: Sequence[int], draft_prompt: Sequence[int], row_seed: int) -> None:
        """A new utterance."""
        generator = torch.Generator().manual_seed(self.decoding.seed * 1_000_003 + row_seed)
        self._uniforms.copy_(torch.rand(self._uniforms.shape, generator=generator))
        self._met.copy_(codes_met([prompt], self.target.layout))
        self._said.fill_(-1)
        self._told.zero_()
        self.target.begin(prompt)
        self.draft.begin(draft_prompt)
        self._told_here, self._unseen = 0, 1  # tokens that the draft has not computed yet

    def next(self) -> tuple[list[int], int, int]:
        """The proposed codes, how many of them are taken, and the code after those."""
        if self._graphs is None:
            self._round(0)
        else:
            longest = max(len(lane.prompt) for lane in (self.target, self.draft))
            furthest = longest + self._told_here + self.length
            self._graphs.run(min(-(-furthest // WIDTH_STEP) * WIDTH_STEP, len(self.target.ids)))
        *proposed, taken, following = self._report.tolist()
        self._told_here += taken + 1
        # The draft has not computed its own last proposal.
        self._unseen = 2 if proposed and taken == len(proposed) else 1
        return proposed, taken, following

    def _place(self, lane: Lane, start: int, count: int) -> Place:
        if self._graphs is None:
            first = len(lane.prompt) + self._told_here + start
            return slice(first, first + count)
        return lane.prompt_length + self._told + torch.arange(start, start + count, device=lane.device)

    def _round(self, width: int) -> None:
        target, draft, length = self.target, self.draft, self.length
        uniform = self._uniforms[self._told][0]
        proposals: list[torch.Tensor] = []
        drafts: list[torch.Tensor] = []
        for place in range(length):
            # A graph cannot know whether the last round took everything, so it always computes two.
            fed = 1 if place else self._unseen if self._graphs is None else 2
            logits = draft.logits(self._place(draft, place - fed, fed), width)[-1:]
            drafts.append(self._chances(logits, proposals)[0])
            proposals.append(drawn(drafts[-1], uniform[place : place + 1]))
            draft.write(self._place(draft, place, 1), proposals[-1])
        proposed = torch.cat([self._told[:0], *proposals])
        if length:
            target.write(self._place(target, 0, length), proposed)
        p, logits = self._chances(target.logits(self._place(target, -1, length + 1), width), proposals)
        if length:
            block = Block(proposed, torch.cat(drafts), p[:-1], logits[:-1])
            accepted = self.rule.accepts(block, uniform[length : 2 * length])
            taken = accepted.long().cumprod(0).sum(0, keepdim=True)
            following = torch.cat([self.rule.replacement(block), p[-1:]])[taken]
        else:
            taken, following = torch.zeros_like(self._told), p
        self._keep(proposed, taken, drawn(following, uniform[2 * length :]))

    def _chances(self, logits: torch.Tensor, proposals: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Distributions and logits [T, V] of T places, of which the last follows all proposals."""
        first = len(proposals) + 1 - len(logits)
        window = torch.arange(ras.WINDOW, device=logits.device)
        recent = torch.cat([self._said[self._told + window], *proposals]).unfold(0, ras.WINDOW, 1)[first:]
        met = self._met
        if self.decoding.repetition_penalty > 1:
            met = met.repeat(len(logits), 1)
            for row in range(len(logits)):
                for before in proposals[: first + row]:
                    met[row].index_fill_(0, before, True)
        return distributions(logits, self.decoding, recent, met)

    def _keep(self, proposed: torch.Tensor, taken: torch.Tensor, following: torch.Tensor) -> None:
        """Writes down what was said; what stands behind it will be written over."""
        places = torch.arange(self.length + 1, device=taken.device)
        codes = torch.where(places < taken, torch.cat([proposed, following]), following)
        self._said[ras.WINDOW + self._told + places] = codes
        self._met.index_fill_(1, codes, True)
        for lane in (self.target, self.draft):
            lane.write(self._place(lane, 0, self.length + 1), codes)
        self._told += taken + 1
        self._report.copy_(torch.cat([proposed, taken, following]))
