"""Rules of acceptance, by hand: what is taken, and what a refused code is replaced from."""

import pytest
import torch

from slimtts.decoding.speculative_rules import AmongTop, Block, Exact, Grouped, Tolerant, code_directions, make_rule
from slimtts.errors import InvalidInputError

# Three codes and END. The ratios p/q of the drawn codes: 0.5, 2, 0.25 and, for END, 0.5.
Q = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.2, 0.2, 0.5, 0.1], [0.0, 0.8, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]])
P = torch.tensor([[0.2, 0.6, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1], [0.6, 0.2, 0.2, 0.0], [0.4, 0.2, 0.1, 0.3]])
BLOCK = Block(torch.tensor([0, 0, 1, 3]), Q, P, P.log())
# Codes 0 and 1 sound nearly alike, 2 like neither.
DIRECTIONS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]])


def taken_below(rule):
    """The largest uniform number, to 1 %, with which each code is still taken; 1 when always."""
    steps = torch.arange(100) / 100
    taken = torch.stack([rule.accepts(BLOCK, step.expand(4)) for step in steps])
    return (taken.sum(0) / 100).tolist()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Exact(), [0.5, 1, 0.25, 0.5]),
        (Tolerant(0.0), [0.5, 1, 0.25, 0.5]),
        (Tolerant(0.4), [0.9, 1, 0.65, 0.9]),
        (Tolerant(1.0), [1, 1, 1, 1]),
        (Grouped(0.7, DIRECTIONS), [1, 1, 1, 0.5]),  # 0.8/0.8, 0.6/0.4, 0.8/0.8; END alone
        (Grouped(0.9, DIRECTIONS), [0.5, 1, 0.25, 0.5]),
        (Grouped(1.0, DIRECTIONS), [0.5, 1, 0.25, 0.5]),
        (Grouped(-1.0, DIRECTIONS), [1, 1, 1, 0.5]),
        (AmongTop(1), [0, 1, 0, 0]),
        (AmongTop(2), [1, 1, 1, 1]),
        (AmongTop(4), [1, 1, 1, 1]),
    ],
)
def test_how_often_a_code_is_taken(rule, expected):
    assert taken_below(rule) == pytest.approx(expected, abs=0.011)


def test_the_residual_is_what_the_target_gives_more_than_the_draft():
    expected = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [6 / 7, 0, 1 / 7, 0], [3 / 4, 1 / 4, 0, 0]])
    for rule in (Exact(), Tolerant(0.2), Grouped(0.5, DIRECTIONS)):
        torch.testing.assert_close(rule.replacement(BLOCK), expected)
    assert AmongTop(2).replacement(BLOCK) is P


def test_equal_models_leave_a_distribution_to_draw_from():
    same = Block(BLOCK.codes, P, P, P.log())
    assert torch.equal(same.residual(), P)


def test_taking_and_replacing_give_the_targets_distribution():
    taken = torch.minimum(P, Q)  # q min(1, p/q)
    refused = 1 - taken.sum(1, keepdim=True)
    torch.testing.assert_close(taken + refused * BLOCK.residual(), P)


def test_names(teacher):
    made = [make_rule(name, teacher.model, teacher.layout) for name in ("exact", "ssd:0.4", "pcg:0.5", "top-k:50")]
    assert made[:2] == [Exact(), Tolerant(0.4)]
    assert (made[2].theta, made[3]) == (0.5, AmongTop(50))
    torch.testing.assert_close(made[2].directions, code_directions(teacher.model, teacher.layout))
    assert made[2].directions.shape == (teacher.layout.num_codes, 32)


@pytest.mark.parametrize(
    "name", ["", "Exact", "exact:1", "ssd", "ssd:", "ssd:1.5", "ssd:nan", "pcg:2", "top-k:0", "top-k:2.5", "top-k:inf"]
)
def test_other_names_are_refused(teacher, name):
    with pytest.raises(InvalidInputError, match="ssd:BETA"):
        make_rule(name, teacher.model, teacher.layout)
