"""The chunked head loss equals the dense losses, in value and gradient."""

import pytest
import torch
from torch.nn import functional as F

from slimtts.decoding import heads
from slimtts.distill import losses
from slimtts.distill.head_loss import HeadTerms, head_loss

FP32 = {"rtol": 2e-5, "atol": 1e-7}
BF16 = {"rtol": 2e-2, "atol": 2e-4}
BOTH = HeadTerms(cross_entropy=0.25, skew_kl=1.0, skew=0.1, temperature=1.0)
TERMS = [
    BOTH,
    HeadTerms(1.0, 0.0, 0.1, 1.0),
    HeadTerms(0.0, 0.7, 0.1, 1.0),
    HeadTerms(0.0, 1.0, 0.0, 1.0),
    HeadTerms(0.5, 1.0, 0.1, 2.0),
]


def inputs(positions=37, vocabulary=29, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return 2 * torch.randn(*shape, generator=generator)

    return {
        "hidden": normal(positions, channels).requires_grad_(),
        "head": normal(vocabulary, channels).requires_grad_(),
        "targets": torch.randint(0, vocabulary, (positions,), generator=generator),
        "teacher": normal(positions, vocabulary),
    }


def dense(x, terms):
    logits = F.linear(x["hidden"], x["head"])
    cross_entropy = losses.cross_entropy(logits, x["targets"])
    skew_kl = losses.skew_kl(logits, x["teacher"], terms.skew, terms.temperature)
    return terms.cross_entropy * cross_entropy + terms.skew_kl * skew_kl


def chunked(x, terms, chunk):
    return head_loss(x["hidden"], x["head"], x["targets"], lambda rows: x["teacher"][rows], terms, chunk)


def gradients(x, total):
    x["hidden"].grad = x["head"].grad = None
    total.backward()
    return x["hidden"].grad.clone(), x["head"].grad.clone()


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk", [1, 5, 37, 64])
def test_equals_the_dense_form_in_value_and_gradient(terms, chunk):
    x = inputs()
    expected = dense(x, terms)
    wanted = gradients(x, 3 * expected)
    total, _, _ = chunked(x, terms, chunk)
    torch.testing.assert_close(total, expected, **FP32)
    for ours, theirs in zip(gradients(x, 3 * total), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


def test_one_position():
    x = inputs(positions=1)
    expected = dense(x, BOTH)
    torch.testing.assert_close(chunked(x, BOTH, 128)[0], expected, **FP32)


def test_bf16_is_close_to_fp32():
    x = inputs()
    expected = dense(x, BOTH)
    wanted = gradients(x, expected)
    with torch.autocast("cpu", torch.bfloat16):
        total, _, _ = chunked(x, BOTH, 8)
    torch.testing.assert_close(total, expected, **BF16)
    for ours, theirs in zip(gradients(x, total), wanted, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_reports_both_terms_unweighted():
    x = inputs()
    logits = F.linear(x["hidden"], x["head"])
    _, cross_entropy, skew_kl = chunked(x, BOTH, 8)
    torch.testing.assert_close(cross_entropy, losses.cross_entropy(logits, x["targets"]), **FP32)
    torch.testing.assert_close(skew_kl, losses.skew_kl(logits, x["teacher"]), **FP32)


def test_student_equal_to_teacher_has_no_divergence_and_no_gradient():
    x = inputs()
    x["teacher"] = F.linear(x["hidden"], x["head"]).detach()
    total, _, _ = chunked(x, HeadTerms(0.0, 1.0, 0.1, 1.0), 8)
    assert abs(total.item()) < 1e-6
    assert all(float(g.abs().max()) < 1e-6 for g in gradients(x, total))


def test_no_position_is_zero_and_finite():
    x = inputs(positions=0)
    total, _, _ = chunked(x, BOTH, 8)
    assert total.item() == 0
    assert all(float(g.abs().sum()) == 0 for g in gradients(x, total))


def test_a_token_that_both_forbid_is_finite():
    x = inputs()
    x["teacher"][:, 3] = -1e30
    with torch.no_grad():
        x["head"][3] = 0
        x["head"][3] -= 1e4 * x["hidden"][0] / x["hidden"][0].square().sum()
    total, _, _ = chunked(x, HeadTerms(0.0, 1.0, 0.1, 1.0), 8)
    assert torch.isfinite(total)
    assert all(bool(torch.isfinite(g).all()) for g in gradients(x, total))


def test_without_a_teacher_only_the_cross_entropy_counts():
    x = inputs()
    total, _, skew_kl = head_loss(x["hidden"], x["head"], x["targets"], None, HeadTerms(1.0, 1.0, 0.1, 1.0))
    torch.testing.assert_close(total, losses.cross_entropy(F.linear(x["hidden"], x["head"]), x["targets"]), **FP32)
    assert skew_kl.item() == 0


def test_rows_that_only_fill_up_change_nothing(monkeypatch):
    """On CUDA the head has a multiple of 64 rows; here the CPU is told to do the same."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(size, generator=generator) for size in ((70, 16), (37, 16)))
    teacher_logits = torch.randn(70, 37, generator=generator)
    targets = torch.randint(0, 37, (70,), generator=generator)
    terms = HeadTerms(cross_entropy=0.25, skew_kl=1.0, skew=0.1, temperature=1.0)

    def value_and_gradients():
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        total, *_ = head_loss(h, w, targets, lambda rows: teacher_logits[rows], terms, 32)
        total.backward()
        return total.detach(), h.grad, w.grad

    expected = value_and_gradients()
    monkeypatch.setitem(heads.ROW_MULTIPLE, "cpu", 64)
    assert heads.padded_rows(head).shape == (64, 16)
    for actual, reference in zip(value_and_gradients(), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-5, atol=1e-7)
