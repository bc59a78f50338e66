"""Equal scores are told, not hidden behind the order of layers; scores that are no numbers rank nothing."""

import math
from types import SimpleNamespace

import pytest
import torch

from slimtts.errors import InvalidInputError
from slimtts.pruning.plan import left_to_chance, plan_retained
from slimtts.results import LayerScore, LayerScores
from slimtts.scoring.set_search import as_good_as_best, search_sets
from slimtts.scoring.ties import require_finite, tied_groups


def scores(importance, best_sets=None, tied_sets=None):
    return LayerScores(
        method="wli", num_layers=len(importance), utterances=8, reference_wer=None,
        layers=[LayerScore(layer=i, importance=value) for i, value in enumerate(importance)],
        drop_order=sorted(range(len(importance)), key=lambda i: importance[i]), best_sets=best_sets or {},
        tied_layers=tied_groups(importance), tied_sets=tied_sets or {}, data_sha256="d", teacher_sha256="t",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("importance", "groups"),
    [
        ([0.3, 0.1, 0.2], []),
        ([0.5, 0.1, 0.5, 0.1, 0.2], [[1, 3], [0, 2]]),
        ([1.0, 1.0, 1.0], [[0, 1, 2]]),
        ([0.1 + 0.2, 0.3, 0.3000001], [[0, 1]]),  # sums in another order are equal, what was measured is not
        ([0.0, 0.0, 1e-6], [[0, 1]]),
        ([], []),
    ],
)
def test_equal_scores_are_grouped(importance, groups):
    assert tied_groups(importance) == groups


def test_a_settled_layer_has_its_rank_from_elsewhere():
    assert tied_groups([0.5, 0.5, 0.5], {1: 2}) == [[0, 2]]


@pytest.mark.parametrize(
    ("importance", "keep", "tied"),
    [
        ([0.5, 0.1, 0.5, 0.1], 2, []),  # both of a pair go, both of the other stay
        ([0.5, 0.1, 0.5, 0.1], 3, [1, 3]),
        ([0.5, 0.1, 0.5, 0.1], 1, [0, 2]),
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1, 2, 3]),  # a recogniser that hears nothing
        ([0.4, 0.1, 0.3, 0.2], 2, []),
        ([1.0, 1.0, 1.0, 1.0], 4, []),
    ],
)
def test_a_tie_counts_only_where_the_cut_parts_it(importance, keep, tied):
    made = scores(importance)
    assert left_to_chance(made, plan_retained(made, keep)) == tied


def test_a_tie_of_sets_names_the_layers_in_which_they_differ():
    made = scores([0.1, 0.2, 0.3, 0.4], {2: [0, 1], 3: [0, 1, 2]}, {2: [[0, 1], [0, 3]]})
    assert left_to_chance(made, plan_retained(made, 2)) == [1, 3]
    assert left_to_chance(made, plan_retained(made, 3)) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(InvalidInputError, match=rf"score of layer 1: observed {bad}, one of 2 that are not finite"):
        require_finite([0.1, bad, bad])


def search(divergence):
    """The search over three layers whose sets diverge as told."""
    model = SimpleNamespace(model=SimpleNamespace(layers=[None] * 3))
    batch = SimpleNamespace(is_target=torch.ones(1, 4, dtype=torch.bool))
    sets = {1: [(0, 1), (0, 2), (1, 2)], 2: [(0,), (1,), (2,)]}

    def measured(jobs):
        return {name: {one: 4 * divergence(one) for one in sets[int(name[4:6])]} for name in jobs}

    return search_sets(model, None, [batch], 3, measured)


def test_sets_that_are_as_good_as_the_best_are_told():
    level, last = search(lambda layers: 0.5 if 2 in layers else 0.7)
    assert as_good_as_best(level) == [[0, 2], [1, 2]]
    assert as_good_as_best(last) == [[2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_search_among_sets_that_are_no_numbers_is_refused(bad):
    with pytest.raises(InvalidInputError, match=r"teacher with layers \[0, 2\] alone: observed (nan|inf)"):
        search(lambda layers: bad if layers == (0, 2) else 0.5)
