"""Scores that do not rank: equal ones, and ones that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from slimtts.errors import InvalidInputError

ROUNDING = 1e-9  # relative: sums of the same numbers in another order


def are_equal(one: float, other: float) -> bool:
    """But for rounding."""
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-12)


def tied_groups(scores: Sequence[float], settled: Collection[int] = ()) -> list[list[int]]:
    """Places of equal scores, two or more together; a `settled` place has its rank from elsewhere."""
    groups: list[list[int]] = []
    for place in sorted((i for i in range(len(scores)) if i not in settled), key=lambda i: (scores[i], i)):
        if groups and are_equal(scores[groups[-1][-1]], scores[place]):
            groups[-1].append(place)
        else:
            groups.append([place])
    return [sorted(group) for group in groups if len(group) > 1]


def require_finite(scores: Sequence[float]) -> None:
    """Refuses scores that nothing can be ranked by.

    Raises:
        InvalidInputError: one is NaN or infinite; the message names its layer.
    """
    wrong = [layer for layer, score in enumerate(scores) if not math.isfinite(score)]
    if wrong:
        raise InvalidInputError(
            f"score of layer {wrong[0]}", f"{scores[wrong[0]]}, one of {len(wrong)} that are not finite",
            "finite scores of all layers", "check the teacher's weights: say something with it",
        )  # fmt: skip
