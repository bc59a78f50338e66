"""Every term: closed form, zero (and no gradient) at equality, masked positions, padding."""

import math

import pytest
import torch
from torch.nn import functional as F

from slimtts.distill import losses

FP32 = {"rtol": 1e-5, "atol": 1e-6}
BF16 = {"rtol": 2e-2, "atol": 2e-2}


def logits(rows=5, vocabulary=7, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def hidden(batch=2, tokens=4, channels=3, seed=0):
    return torch.randn(batch, tokens, channels, generator=torch.Generator().manual_seed(seed))


MASK = torch.tensor([[True, True, False, False], [False, True, True, True]])
HIDDEN_LOSSES = [losses.mean_squared, losses.relative_squared]


def test_cross_entropy_by_hand():
    value = losses.cross_entropy(torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0]))
    torch.testing.assert_close(value, torch.tensor((-math.log(0.75) - math.log(0.5)) / 2))


def test_skew_kl_by_hand():
    p, q = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]])
    mixture = 0.1 * p + 0.9 * q
    expected = (p * (p / mixture).log()).sum()
    torch.testing.assert_close(losses.skew_kl(q.log(), p.log()), expected)


def test_skew_kl_is_bounded_where_the_student_gives_nothing():
    value = losses.skew_kl(torch.tensor([[-200.0, 0.0]]), torch.tensor([[0.0, -200.0]]))
    torch.testing.assert_close(value, torch.tensor(math.log(10)), rtol=1e-4, atol=1e-4)


def test_skew_kl_is_zero_with_no_gradient_at_equality():
    student = logits().requires_grad_()
    value = losses.skew_kl(student, student.detach().clone())
    value.backward()
    assert abs(value.item()) < 1e-6
    assert float(student.grad.abs().max()) < 1e-7


def test_skew_zero_is_the_plain_kl():
    s, t = logits(seed=1), logits(seed=2)
    expected = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(losses.skew_kl(s, t, skew=0.0), expected, **FP32)


def test_skew_kl_in_bf16_is_close():
    s, t = logits(seed=1), logits(seed=2)
    torch.testing.assert_close(losses.skew_kl(s.bfloat16(), t.bfloat16()), losses.skew_kl(s, t), **BF16)


def test_temperature_softens_both_and_keeps_the_size_of_gradients():
    s, t = logits(seed=1), logits(seed=2)
    expected = 4 * losses.skew_kl(s / 2, t / 2)
    torch.testing.assert_close(losses.skew_kl(s, t, temperature=2.0), expected, **FP32)
    same = logits().requires_grad_()
    losses.skew_kl(same, same.detach().clone(), temperature=2.0).backward()
    assert float(same.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("loss", HIDDEN_LOSSES)
def test_hidden_losses_are_zero_with_no_gradient_at_equality(loss):
    student = hidden().requires_grad_()
    value = loss(student, student.detach().clone(), MASK)
    value.backward()
    assert value.item() == 0
    assert float(student.grad.abs().max()) == 0


def test_mean_squared_by_hand():
    value = losses.mean_squared(torch.ones(1, 2, 2) * 3, torch.ones(1, 2, 2), torch.tensor([[True, False]]))
    assert float(value) == 4


def test_relative_squared_by_hand_and_free_of_scale():
    s, t = hidden(seed=1), hidden(seed=2)
    expected = (s - t)[MASK].square().mean() / t[MASK].square().mean()
    torch.testing.assert_close(losses.relative_squared(s, t, MASK), expected, **FP32)
    torch.testing.assert_close(losses.relative_squared(9 * s, 9 * t, MASK), expected, **FP32)


@pytest.mark.parametrize("loss", HIDDEN_LOSSES)
def test_masked_positions_get_exactly_no_gradient(loss):
    student = hidden(seed=1).requires_grad_()
    loss(student, hidden(seed=2), MASK).backward()
    assert float(student.grad[~MASK].abs().max()) == 0
    assert float(student.grad[MASK].abs().min()) > 0


@pytest.mark.parametrize("loss", HIDDEN_LOSSES)
def test_padding_changes_nothing(loss):
    s, t = hidden(seed=1), hidden(seed=2)
    padded = [F.pad(x, (0, 0, 0, 5), value=7.0) for x in (s, t)]
    torch.testing.assert_close(loss(*padded, F.pad(MASK, (0, 5))), loss(s, t, MASK))


@pytest.mark.parametrize("loss", HIDDEN_LOSSES)
def test_all_masked_is_zero_and_finite(loss):
    student = hidden(seed=1).requires_grad_()
    value = loss(student, hidden(seed=2), torch.zeros_like(MASK))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student.grad))


def test_no_target_at_all_is_zero_and_finite():
    student = logits(rows=0).requires_grad_()
    total = losses.cross_entropy(student, torch.zeros(0, dtype=torch.long)) + losses.skew_kl(student, logits(rows=0))
    total.backward()
    assert total.item() == 0


def test_attention_term_is_masked_by_query_position():
    student = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    teacher = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    losses.attention_squared(student, teacher, MASK).backward()
    touched = student.grad.abs().sum((1, 3)) > 0
    assert torch.equal(touched, MASK)


def test_dynamic_matching_ends_each_segment():
    assert losses.dynamic_matches([0, 1, 4, 7, 10, 11], 12) == [0, 3, 6, 9, 10, 11]
    assert losses.dynamic_matches([0, 3], 12) == [2, 11]
    assert losses.dynamic_matches(list(range(4)), 4) == [0, 1, 2, 3]
