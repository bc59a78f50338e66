"""The budget: exact where it counts, one line where it cannot be met."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.pruning import budget
from slimtts.pruning.budget import DepthCost, Limit, latency_cost, line_through, most_layers, parameter_cost
from slimtts.pruning.surgery import remove_layers
from slimtts.stages.prune_layers import narrowed_teacher
from slimtts.testing.tiny import tiny_model

# A twelve-layer teacher: 40 of 100 are fixed, each layer costs 5.
COST = DepthCost(fixed=40, each_layer=5, teacher=100)


@pytest.mark.parametrize(
    ("keep", "shares", "expected"),
    [
        (12, (1.0, 1.0), 12),
        (6, (1.0, 1.0), 6),
        (12, (0.70, 1.0), 6),  # exactly at the limit is within it
        (12, (0.699, 1.0), 5),
        (12, (1.0, 0.5), 2),
        (12, (0.70, 0.5), 2),
        (4, (0.70, 0.65), 4),
        (12, (0.45, 1.0), 1),
    ],
)
def test_the_deepest_student_within_all_three_limits(keep, shares, expected):
    limits = [Limit("first", shares[0], COST), Limit("second", shares[1], COST)]
    assert most_layers(keep, 12, limits) == expected


def test_without_limits_the_depth_is_the_one_asked_for():
    assert most_layers(7, 12, []) == 7


def test_an_impossible_limit_is_named_in_one_line():
    limits = [Limit("prune_layers.max_parameter_share", 0.9, COST), Limit("prune_layers.max_latency_share", 0.44, COST)]
    with pytest.raises(InvalidInputError) as caught:
        most_layers(12, 12, limits)
    assert str(caught.value) == (
        "prune_layers.max_latency_share: observed 0.44; allowed: at least 0.4500, the share of one layer; "
        "next: raise it, or lower prune_layers.ffn_share"
    )


@pytest.mark.parametrize("keep", [0, 13])
def test_a_depth_that_the_teacher_does_not_have_is_refused(keep):
    with pytest.raises(InvalidInputError, match=r"prune_layers.keep_layers: observed .*; allowed: 1\.\.12"):
        most_layers(keep, 12, [Limit("first", 0.1, COST)])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("ffn_share", [1.0, 0.5])
def test_counted_parameters_are_those_of_the_pruned_model(kind, tied, ffn_share):
    teacher = tiny_model(kind, tied=tied)
    full_depth = narrowed_teacher(teacher, ffn_share)
    cost = parameter_cost(teacher, full_depth)
    for layers in (1, 3, 4):
        student = remove_layers(full_depth, range(layers))
        assert cost.share(layers) == student.num_parameters() / teacher.num_parameters()


def test_the_whole_teacher_satisfies_a_share_of_one():
    teacher = tiny_model()
    assert most_layers(4, 4, [Limit("share", 1.0, parameter_cost(teacher, teacher))]) == 4


def test_the_line_goes_through_both_depths():
    assert line_through((12, 100.0), (6, 70.0)) == (40.0, 5.0)


def test_noise_cannot_make_layers_cost_less_than_nothing():
    assert line_through((12, 90.0), (6, 100.0)) == (90.0, 0.0)
    assert line_through((1, 5.0), (1, 6.0)) == (5.0, 0.0)


@pytest.fixture
def cost_by_depth(monkeypatch):
    """Seconds are a line in the depth, narrow models take one less; lists (depth, FFN channels) of what was timed."""
    timed = []

    def seconds(model, _):
        timed.append((model.config.num_hidden_layers, model.config.intermediate_size))
        return 4 + 2 * model.config.num_hidden_layers - (model.config.intermediate_size < 48)

    monkeypatch.setattr(budget, "seconds_a_token", seconds)
    return timed


def test_latency_is_fitted_from_full_and_half_depth(teacher, cost_by_depth):
    assert latency_cost(teacher.model, teacher.model, teacher.layout) == DepthCost(4, 2, 12)
    assert set(cost_by_depth) == {(4, 48), (2, 48)}


def test_latency_of_a_narrower_student_is_compared_with_the_teacher(teacher, cost_by_depth):
    cost = latency_cost(teacher.model, narrowed_teacher(teacher.model, 0.5), teacher.layout)
    assert cost == DepthCost(3, 2, 12)
    assert set(cost_by_depth) == {(4, 48), (4, 24), (2, 24)}


def test_rounds_that_were_disturbed_do_not_move_the_median(teacher, monkeypatch):
    readings = iter([50.0] * budget.WARM_UP_ROUNDS + [1.0] * (budget.ROUNDS - 2) + [100.0, 100.0])
    monkeypatch.setattr(budget, "seconds_a_token", lambda *_: next(readings))
    assert budget.median_seconds([teacher.model], teacher.layout) == [1.0]
    assert list(readings) == []


def test_a_token_is_decoded_with_one_new_position_a_step(teacher):
    seen = []
    hook = teacher.model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2]))
    try:
        assert budget.seconds_a_token(teacher.model, teacher.layout) > 0
    finally:
        hook.remove()
    assert seen == [(1, budget.PROMPT_TOKENS)] + [(1, 1)] * budget.DECODED_TOKENS
