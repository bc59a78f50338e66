"""Which utterances the student may learn from: never more hours than the budget, never a held-out sentence."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slimtts.data.prompts import prompt_length_gap_s
from slimtts.data.splits import Candidate, draw_splits, seeded_order
from slimtts.data.texts import words_of
from slimtts.errors import InvalidInputError
from slimtts.params import SubsetDataParams

# Coverage stops asking for a word once it was heard this often; the rest of the budget keeps the natural mixture.
WANTED_OCCURRENCES = 5


@dataclass(frozen=True)
class Subset:
    """The chosen rows, each split in seeded random order, and how they relate to what was there.

    `left_out`: rows that could have been trained on, but not within the budget.
    `word_coverage`: distinct words of `train` / distinct words of all rows that could have been trained on.
    """

    train: tuple[Candidate, ...]
    selection: tuple[Candidate, ...]
    test: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]
    hours: float
    share: float
    word_coverage: float
    dropped: dict[str, int]


class _Basket:
    """Takes rows while they fit the budget. Counts whole microseconds, so that no sum of floats can exceed it."""

    def __init__(self, budget_s: float) -> None:
        self.left_us = math.floor(budget_s * 1e6)
        self.rows: dict[str, Candidate] = {}

    def offer(self, row: Candidate) -> bool:
        """True when the row is now in."""
        cost_us = math.ceil(row.duration_s * 1e6)
        if row.id in self.rows or cost_us > self.left_us:
            return False
        self.left_us -= cost_us
        self.rows[row.id] = row
        return True


def vocabulary_of(rows: Iterable[Candidate]) -> set[str]:
    """Distinct words."""
    return {word for row in rows for word in words_of(row.text)}


def total_hours(rows: Iterable[Candidate]) -> float:
    """Hours of speech."""
    return math.fsum(row.duration_s for row in rows) / 3600


def select_subset(
    candidates: Sequence[Candidate],
    params: SubsetDataParams,
    teacher_hours: float,
    min_duration_s: float,
    max_duration_s: float,
) -> Subset:
    """Held-out sentences first, then training rows by `params.strategy` within max_share x teacher_hours.

    Raises:
        InvalidInputError: too few sentences, an empty budget, or one too small to prompt every held-out voice.
    """
    if not (math.isfinite(teacher_hours) and teacher_hours > 0):
        raise InvalidInputError(
            "teacher", f"{teacher_hours} training hours", "more than 0", "correct the teacher's card"
        )
    short = sum(row.duration_s < min_duration_s for row in candidates)
    long = sum(row.duration_s > max_duration_s for row in candidates)
    usable = [row for row in candidates if min_duration_s <= row.duration_s <= max_duration_s]
    unfit = Counter(too_short=short, too_long=long)
    splits = draw_splits(usable, params.selection_utterances, params.test_utterances, params.seed, +unfit)

    basket = _Basket(params.max_share * teacher_hours * 3600)
    _take_prompts(basket, splits.train, {row.voice for row in (*splits.selection, *splits.test)})
    {"random": _take_random, "balanced": _take_balanced, "coverage": _take_coverage}[params.strategy](
        basket, splits.train
    )
    train = tuple(seeded_order(basket.rows.values(), params.seed))
    hours = total_hours(train)
    dropped = splits.dropped + unfit
    return Subset(
        train=train,
        selection=tuple(splits.selection),
        test=tuple(splits.test),
        left_out=tuple(row for row in splits.train if row.id not in basket.rows),
        hours=hours,
        share=hours / teacher_hours,
        word_coverage=len(vocabulary_of(train)) / len(vocabulary_of(splits.train)),
        dropped=dict(sorted(dropped.items())),
    )


def _take_prompts(basket: _Basket, pool: list[Candidate], voices: set[str]) -> None:
    """One row for each held-out voice, of the length that prompts should have."""
    best: dict[str, Candidate] = {}
    for row in pool:
        if row.voice in voices and (
            row.voice not in best
            or prompt_length_gap_s(row.duration_s) < prompt_length_gap_s(best[row.voice].duration_s)
        ):
            best[row.voice] = row
    for voice, row in sorted(best.items()):
        if not basket.offer(row):
            raise InvalidInputError(
                "subset_data.max_share",
                f"a budget too small to hold one utterance of voice '{voice}'",
                f"one utterance for each of {len(voices)} voices",
                "raise max_share or hold out fewer utterances",
            )


def _take_random(basket: _Basket, pool: list[Candidate]) -> None:
    """As they come; `pool` is shuffled. Rows that no longer fit leave room for shorter ones."""
    for row in pool:
        basket.offer(row)


def _take_balanced(basket: _Basket, pool: list[Candidate]) -> None:
    """The voice with the fewest seconds is next; a voice that runs out leaves its share to the others."""
    queues: dict[str, list[Candidate]] = {}
    for row in reversed(pool):
        queues.setdefault(row.voice, []).append(row)
    spent_s = dict.fromkeys(queues, 0.0)
    for row in basket.rows.values():
        spent_s[row.voice] += row.duration_s
    heap = [(spent_s[voice], voice) for voice in queues]
    heapq.heapify(heap)
    while heap:
        seconds, voice = heapq.heappop(heap)
        while queues[voice]:
            row = queues[voice].pop()
            if basket.offer(row):
                heapq.heappush(heap, (seconds + row.duration_s, voice))
                break


def _take_coverage(basket: _Basket, pool: list[Candidate]) -> None:
    """Greedy: the sentence with the most words that were not, or seldom, heard; then as they come.

    A word heard c times is worth 1 / (1 + c), nothing from WANTED_OCCURRENCES on. Worth only falls, so a former
    value is an upper bound and few sentences are counted again (lazy greedy: Minoux 1978).
    """
    words = [tuple(dict.fromkeys(words_of(row.text))) for row in pool]
    heard: Counter[str] = Counter()
    for row in basket.rows.values():
        heard.update(set(words_of(row.text)))
    worth = [1 / (1 + count) for count in range(WANTED_OCCURRENCES)]

    def gain(index: int) -> float:
        return sum(worth[heard[word]] for word in words[index] if heard[word] < WANTED_OCCURRENCES)

    heap = [(-gain(index), index) for index in range(len(pool))]  # ties: the shuffled order of the pool
    heapq.heapify(heap)
    while heap:
        _, index = heapq.heappop(heap)
        value = gain(index)
        if value == 0:
            continue
        if heap and value < -heap[0][0]:
            heapq.heappush(heap, (-value, index))
        elif basket.offer(pool[index]):
            heard.update(words[index])
    _take_random(basket, pool)
