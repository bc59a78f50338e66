"""Which layers stay: from scores and a budget to a validated, sorted, 0-based list."""

from __future__ import annotations

from collections.abc import Sequence

from slimtts.errors import InvalidInputError
from slimtts.results import LayerScores


def check_retained(retained: Sequence[int], num_layers: int) -> list[int]:
    """The same list, sorted.

    Raises:
        InvalidInputError: empty, duplicate, negative or out of range.
    """
    allowed = f"distinct layers in 0..{num_layers - 1}, at least one"
    wrong = [i for i in retained if not 0 <= i < num_layers]
    if not retained or wrong or len(set(retained)) != len(retained):
        raise InvalidInputError("retained layers", list(retained), allowed, "correct the list")
    return sorted(retained)


def check_keep_layers(keep_layers: int, num_layers: int) -> None:
    """Refuses a depth that the teacher does not have.

    Raises:
        InvalidInputError: not in 1..num_layers.
    """
    if not 1 <= keep_layers <= num_layers:
        raise InvalidInputError(
            "prune_layers.keep_layers", keep_layers, f"1..{num_layers}", "correct the budget in params.yaml"
        )


def left_to_chance(scores: LayerScores, retained: Sequence[int]) -> list[int]:
    """Layers that scored the same, some of which are in `retained` while others are not; empty where scores chose."""
    others = scores.tied_sets.get(len(retained), [])
    if len(retained) in scores.best_sets:
        in_all, in_any = (set(retained).intersection(*others), set(retained).union(*others))
        return sorted(in_any - in_all)
    return next((group for group in scores.tied_layers if 0 < len(set(group) & set(retained)) < len(group)), [])


def plan_retained(scores: LayerScores, keep_layers: int) -> list[int]:
    """The best set of `keep_layers` layers; where layers were only scored one by one, the most important ones.

    Raises:
        InvalidInputError: the budget is impossible or the scores do not reach it.
    """
    num_layers = scores.num_layers
    check_keep_layers(keep_layers, num_layers)
    if keep_layers in scores.best_sets:
        return check_retained(scores.best_sets[keep_layers], num_layers)
    to_drop = num_layers - keep_layers
    if len(scores.drop_order) < to_drop:
        raise InvalidInputError(
            "drop order", f"{len(scores.drop_order)} layers", f"at least {to_drop}", "run score_layers again"
        )
    dropped = set(scores.drop_order[:to_drop])
    return check_retained([i for i in range(num_layers) if i not in dropped], num_layers)
