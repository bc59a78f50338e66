"""Ballots of blind comparisons: read back, checked against the run and against what the page would have asked.

The checks find foreign, damaged and edited files. They are no proof of honesty: the page keeps no secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from slimtts.errors import InvalidInputError
from slimtts.evaluation.statistics import bootstrap_mean, paired_bootstrap_mean
from slimtts.outside_files import read_text
from slimtts.report.content import OURS, Content
from slimtts.results import EvaluationReport, Interval, Result

Opinion = Annotated[int, Field(ge=1, le=5, strict=True)]
MAX_BALLOT_BYTES = 1 << 20


class Vote(Result):
    """One sentence: which column was behind A and B, which sounded better, and how each was rated."""

    id: str
    a: str
    b: str
    choice: Literal["a", "b", "none"]
    score_a: Opinion
    score_b: Opinion


class Ballot(Result):
    """One listener's votes, as the page exports them."""

    format: Literal["slimtts-ballot-1"]
    test_set_sha256: str
    weights_sha256: dict[str, str]
    listener: Annotated[str, Field(min_length=1, max_length=60)]
    pair: tuple[str, str]
    votes: list[Vote]
    checksum: int


@dataclass(frozen=True)
class Tally:
    """All ballots on one pair. The unit of every interval is the sentence, over all its listeners.

    `preferred` is the share of the first of the pair among sentences with a preference, None where there is none.
    """

    pair: tuple[str, str]
    listeners: list[str]
    votes: int
    for_first: int
    undecided: int
    for_second: int
    won: int
    lost: int
    preferred: Interval | None
    p_value: float
    mos: dict[str, Interval]
    mos_gap: Interval

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            key: value.model_dump() if isinstance(value, Interval) else value for key, value in vars(self).items()
        } | {"mos": {name: opinion.model_dump() for name, opinion in self.mos.items()}}

    def in_words(self) -> str:
        """One sentence of numbers."""
        first, second = self.pair
        heard = f"{self.votes} votes of {len(self.listeners)} listener{'s' * (len(self.listeners) != 1)}: "
        counts = f"{first} preferred in {self.for_first}, {second} in {self.for_second}, neither in {self.undecided}. "
        if self.preferred is None:
            share = "No sentence has a preference. "
        else:
            share = (
                f"Of {self.won + self.lost} sentences with a preference {100 * self.preferred.value:.0f} % "
                f"[{100 * self.preferred.low:.0f}, {100 * self.preferred.high:.0f}] went to {first} "
                f"(sign test p = {self.p_value:.2g}). "
            )
        opinion = ", ".join(f"{name} {v.value:.2f} [{v.low:.2f}, {v.high:.2f}]" for name, v in self.mos.items())
        gap = f"{self.mos_gap.value:+.2f} [{self.mos_gap.low:+.2f}, {self.mos_gap.high:+.2f}]"
        return f"{heard}{counts}{share}Mean opinion of 1 to 5: {opinion}; difference {gap}."


def scramble(text: str) -> int:
    """32 bits that the page computes in the same way: FNV-1a over UTF-8, mixed as MurmurHash3 does at its end."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = ((value ^ (value >> shift)) * factor) & 0xFFFFFFFF
    return value ^ (value >> 16)


def run_key(report: EvaluationReport) -> str:
    """What ballots belong to: the test set, and the weights of every system."""
    weights = [f"{name}={digest}" for name, digest in sorted(report.weights_sha256.items())]
    return "|".join([report.test_set_sha256, *weights])


def blind_order(ids: Sequence[str], key: str, listener: str, pair: Sequence[str]) -> list[tuple[str, str, str]]:
    """(sentence, column behind A, column behind B), in the order in which this listener hears them."""
    seed = "|".join([key, listener, *pair])
    first, second = pair
    drawn = sorted(ids, key=lambda name: (scramble(f"{seed}|order|{name}"), name))
    sides = (scramble(f"{seed}|side|{name}") & 1 for name in drawn)
    return [(name, second, first) if side else (name, first, second) for name, side in zip(drawn, sides, strict=True)]


def checksum(key: str, ballot: Ballot) -> int:
    """As the page writes it."""
    votes = [f"{v.id},{v.a},{v.b},{v.choice},{v.score_a},{v.score_b}" for v in ballot.votes]
    return scramble("|".join([key, ballot.listener, *ballot.pair, *votes]))


def read_ballot(path: Path, content: Content) -> Ballot:
    """A ballot that this run's page has asked for.

    Raises:
        InvalidInputError: unreadable, of another run, or other than what the page would have written.
    """
    report = content.facts.evaluation
    what, again = f"votes {path}", "export them again from the page of this run"
    try:
        text = read_text(path, what, "votes that the page exported", "correct the path", MAX_BALLOT_BYTES)
        ballot = Ballot.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        observed = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
        raise InvalidInputError(what, observed, "votes that the page exported", again) from None
    for field in ("test_set_sha256", "weights_sha256"):
        if getattr(ballot, field) != getattr(report, field):
            raise InvalidInputError(what, f"another run's {field}", "votes on this run", "name the run they belong to")
    known = {column.name for column in content.columns}
    if ballot.pair[0] == ballot.pair[1] or not known.issuperset(ballot.pair):
        raise InvalidInputError(what, f"pair {ballot.pair}", f"two of {', '.join(sorted(known))}", again)
    if not ballot.votes:
        raise InvalidInputError(what, "no votes", "at least one", "vote first")
    key = run_key(report)
    asked = blind_order(content.blind_ids(ballot.pair), key, ballot.listener, ballot.pair)
    voted = [(vote.id, vote.a, vote.b) for vote in ballot.votes]
    if voted != asked[: len(voted)]:
        raise InvalidInputError(what, "other sentences, order or sides", "those that this listener was asked", again)
    if ballot.checksum != checksum(key, ballot):
        raise InvalidInputError(what, "a checksum that does not fit", "votes as they were exported", again)
    return ballot


def read_ballots(paths: Sequence[Path], content: Content) -> list[Ballot]:
    """Several listeners' ballots on one pair.

    Raises:
        InvalidInputError: as `read_ballot`, a listener twice, or different pairs.
    """
    ballots: list[Ballot] = []
    for path in paths:
        ballot = read_ballot(path, content)
        if ballots and ballot.pair != ballots[0].pair:
            observed = f"{' against '.join(ballot.pair)}, others {' against '.join(ballots[0].pair)}"
            raise InvalidInputError(f"votes {path}", observed, "one pair", "read each pair's votes alone")
        if ballot.listener in {known.listener for known in ballots}:
            raise InvalidInputError(f"votes {path}", f"listener {ballot.listener!r} again", "a ballot each", "drop one")
        ballots.append(ballot)
    return ballots


def tally(ballots: Sequence[Ballot], samples: int, seed: int) -> Tally:
    """Preference with an exact binomial interval and sign test, mean opinions with bootstrap intervals.

    Raises:
        InvalidInputError: no ballots.
    """
    from scipy.stats import binomtest

    if not ballots:
        raise InvalidInputError("votes", "no ballots", "at least one", "name the exported files")
    pair = ballots[0].pair
    leaning: dict[str, list[int]] = {}
    scores: dict[str, dict[str, list[int]]] = {name: {} for name in pair}
    for vote in (vote for ballot in ballots for vote in ballot.votes):
        chosen = {"a": vote.a, "b": vote.b}.get(vote.choice)
        leaning.setdefault(vote.id, []).append((chosen == pair[0]) - (chosen == pair[1]))
        for name, score in ((vote.a, vote.score_a), (vote.b, vote.score_b)):
            scores[name].setdefault(vote.id, []).append(score)
    all_votes = [lean for of_sentence in leaning.values() for lean in of_sentence]
    won, lost = (sum(sign * sum(leans) > 0 for leans in leaning.values()) for sign in (1, -1))
    preferred, p_value = None, 1.0
    if won + lost:
        test = binomtest(won, won + lost)
        bounds = test.proportion_ci(0.95, method="exact")
        preferred = Interval(value=won / (won + lost), low=float(bounds.low), high=float(bounds.high))
        p_value = float(test.pvalue)
    means = {name: [sum(s) / len(s) for s in of_sentence.values()] for name, of_sentence in scores.items()}
    return Tally(
        pair, [ballot.listener for ballot in ballots], len(all_votes), all_votes.count(1), all_votes.count(0),
        all_votes.count(-1), won, lost, preferred, p_value,
        {name: bootstrap_mean(means[name], samples, seed) for name in pair},
        paired_bootstrap_mean(means[pair[0]], means[pair[1]], samples, seed),
    )  # fmt: skip


def default_pairs(content: Content) -> list[tuple[str, str]]:
    """Comparisons that the page offers: ours against each other column, the teacher first."""
    names = [column.name for column in content.columns]
    if OURS not in names:
        return []
    others = sorted((name for name in names if name != OURS), key=lambda name: (name != "teacher", names.index(name)))
    return [(OURS, other) for other in others if content.blind_ids((OURS, other))]
