"""When a target takes a code that a draft proposes: exactly, or with a tolerance that trades likeness for speed.

Legend: K proposed codes of a block, V spoken vocabulary (codes + END), D hidden; p target, q draft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from slimtts.errors import InvalidInputError
from slimtts.teachers.base import SpeechTokenLayout


@dataclass(frozen=True)
class Block:
    """Codes [K] that the draft drew from q [K, V]; the target's p [K, V] and logits [K, V] at the same places."""

    codes: torch.Tensor
    q: torch.Tensor
    p: torch.Tensor
    logits: torch.Tensor

    def likelihood_ratio(self) -> torch.Tensor:
        """p / q of each code, [K]; q of a code that was drawn is never 0."""
        at = self.codes.unsqueeze(1)
        return (self.p.gather(1, at) / self.q.gather(1, at)).squeeze(1)

    def residual(self) -> torch.Tensor:
        """norm(max(0, p - q)) [K, V]: what a refused code is replaced from; p where nothing is left, as for p = q."""
        left = (self.p - self.q).clamp(min=0)
        total = left.sum(1, keepdim=True)
        return torch.where(total > 0, left / total.clamp(min=torch.finfo(left.dtype).tiny), self.p)


class Rule(Protocol):
    """Which codes are taken, and what a refused one is replaced from."""

    def accepts(self, block: Block, uniform: torch.Tensor) -> torch.Tensor:
        """bool [K], decided by `uniform` [K] in [0, 1); a code counts only when all before it were taken."""
        ...

    def replacement(self, block: Block) -> torch.Tensor:
        """Distributions [K, V]."""
        return block.residual()


@dataclass(frozen=True)
class Exact(Rule):
    """Takes a code with min(1, p/q): speech is distributed as the target's own, and greedy is the target's greedy.

    Source: arXiv 2211.17192, Algorithm 1.
    """

    def accepts(self, block: Block, uniform: torch.Tensor) -> torch.Tensor:
        """bool [K]."""
        return uniform < block.likelihood_ratio()


@dataclass(frozen=True)
class Tolerant(Rule):
    """Takes a code with min(1, p/q) + beta: a share `beta` of the codes that the target would refuse is kept.

    Source: SSD, arXiv 2505.15380. It also takes codes, and END, that the target never says.
    """

    beta: float

    def accepts(self, block: Block, uniform: torch.Tensor) -> torch.Tensor:
        """bool [K]."""
        return uniform < block.likelihood_ratio().clamp(max=1) + self.beta


@dataclass(frozen=True)
class Grouped(Rule):
    """Takes a code with min(1, p(G)/q(G)), G the codes whose embedding is within a cosine of `theta` to it.

    `directions` [V - 1, D] are the codes' embeddings of length 1; END is a group of its own. Source: PCG, arXiv
    2511.13732, for one group a code; a refused code is replaced as by the exact rule.
    """

    theta: float
    directions: torch.Tensor

    def accepts(self, block: Block, uniform: torch.Tensor) -> torch.Tensor:
        """bool [K]."""
        end = len(self.directions)
        near = self.directions[block.codes.clamp(max=end - 1)] @ self.directions.T > self.theta  # [K, V - 1]
        is_end = (block.codes == end).unsqueeze(1)
        group = torch.cat([near & ~is_end, is_end], dim=1)
        group.scatter_(1, block.codes.unsqueeze(1), True)  # a code is in its group whatever rounding and theta say
        p, q = ((of * group).sum(1) for of in (block.p, block.q))
        return uniform < p / q


@dataclass(frozen=True)
class AmongTop(Rule):
    """Takes a code that is among the target's `count` likeliest; another is replaced by the target's own choice.

    Source: LLaSA+, arXiv 2508.06262.
    """

    count: int

    def accepts(self, block: Block, uniform: torch.Tensor) -> torch.Tensor:
        """bool [K]; `uniform` decides nothing."""
        proposed = block.logits.gather(1, block.codes.unsqueeze(1))
        return (block.logits > proposed).sum(1) < self.count

    def replacement(self, block: Block) -> torch.Tensor:
        """The target's p."""
        return block.p


def code_directions(model: Any, layout: SpeechTokenLayout) -> torch.Tensor:
    """The input embeddings of all codes, of length 1: [V - 1, D]."""
    rows = model.get_input_embeddings().weight[layout.first_code_id : layout.first_code_id + layout.num_codes]
    return torch.nn.functional.normalize(rows.detach().float(), dim=1).to(rows.dtype)


NAMES = "exact | ssd:BETA (0..1) | pcg:THETA (-1..1) | top-k:COUNT (1 or more)"
# Name -> whether a number is allowed, and the rule it makes for a target.
_MAKERS: dict[str, tuple[Callable[[float], bool], Callable[[float, Any, SpeechTokenLayout], Rule]]] = {
    "ssd": (lambda beta: 0 <= beta <= 1, lambda beta, model, layout: Tolerant(beta)),
    "pcg": (
        lambda theta: -1 <= theta <= 1,
        lambda theta, model, layout: Grouped(theta, code_directions(model, layout)),
    ),
    "top-k": (lambda count: count >= 1 and count.is_integer(), lambda count, model, layout: AmongTop(int(count))),
}


def make_rule(name: str, model: Any, layout: SpeechTokenLayout) -> Rule:
    """The rule that a name like "exact", "ssd:0.4", "pcg:0.4" or "top-k:50" means for a target.

    Raises:
        InvalidInputError: no such rule, or a number outside its range.
    """
    if name == "exact":
        return Exact()
    kind, _, number = name.partition(":")
    try:
        is_allowed, make = _MAKERS[kind]
        value = float(number)
        if is_allowed(value):
            return make(value, model, layout)
    except (KeyError, ValueError):
        pass
    raise InvalidInputError("rule of speculative decoding", repr(name), NAMES, "choose one of these")
