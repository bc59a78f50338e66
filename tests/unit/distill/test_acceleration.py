"""What makes training faster or smaller leaves loss and gradients as they were."""

from functools import partial

import pytest
import torch

from slimtts.distill import acceleration
from slimtts.distill.acceleration import accelerated, compiled_chunk_gradient, hold_linears_in, is_compiled
from slimtts.distill.batches import PairSampler
from slimtts.distill.head_loss import HeadTerms, chunk_gradient, head_loss
from slimtts.distill.healing import PRESETS, HealingLoss, signals
from slimtts.pruning.surgery import remove_layers
from slimtts.testing.tiny import tiny_model, tiny_utterances

RETAINED = (0, 3)


def step_batch(teacher):
    return next(PairSampler(teacher, tiny_utterances(20), 160, 5).from_step(0))


def gradients(teacher, compiled=False, recomputed=False):
    student = remove_layers(teacher.model, RETAINED).train()
    loss = HealingLoss(PRESETS["default"], teacher.layout, teacher.model, RETAINED)
    with accelerated(student, compiled, recomputed):
        total, _ = loss(student, step_batch(teacher))
        total.backward()
    return total.item(), {name: p.grad for name, p in student.named_parameters()}, student


def test_activations_computed_again_give_the_same_bits(teacher):
    total, expected, _ = gradients(teacher)
    again, found, student = gradients(teacher, recomputed=True)
    assert again == total
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert not student.is_gradient_checkpointing, "as it was before"


def test_activations_of_a_layer_are_not_kept(teacher):
    student, loss = (
        remove_layers(teacher.model, RETAINED).train(),
        HealingLoss(PRESETS["cross_entropy"], teacher.layout),
    )

    def kept(recomputed):
        held = set()
        with (
            accelerated(student, False, recomputed),
            torch.autograd.graph.saved_tensors_hooks(lambda t: held.add(t.data_ptr()) or t, lambda t: t),
        ):
            loss(student, step_batch(teacher))
        return len(held)

    assert kept(recomputed=True) < 0.5 * kept(recomputed=False)


def test_compiled_layers_give_the_same_gradient_record_every_layer_and_are_plain_again(teacher, monkeypatch):
    calls = []
    monkeypatch.setattr(
        acceleration.torch, "compile", lambda f, dynamic: lambda *a, **k: calls.append(dynamic) or f(*a, **k)
    )
    total, expected, _ = gradients(teacher)
    again, found, student = gradients(teacher, compiled=True)
    assert (again, calls) == (total, [True, True])
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert not any("forward" in vars(layer) for layer in student.model.layers)


@pytest.mark.parametrize("terms", [HeadTerms(0.25, 1.0, 0.1, 1.0), HeadTerms(1.0, 0.0, 0.1, 1.0)])
def test_the_compiled_head_loss_is_the_plain_one_for_any_number_of_positions(terms, monkeypatch):
    traced = partial(torch.compile, backend="aot_eager")  # all of compiling but the machine code, which takes a minute
    monkeypatch.setattr(acceleration.torch, "compile", traced)
    compiled = compiled_chunk_gradient.__wrapped__()
    generator = torch.Generator().manual_seed(0)

    def result(positions, of_chunk):
        hidden = torch.randn(positions, 8, generator=generator.manual_seed(1)).requires_grad_()
        head = torch.randn(29, 8, generator=generator).requires_grad_()
        targets = torch.randint(0, 29, (positions,), generator=generator)
        taught = torch.randn(positions, 29, generator=generator)
        total, *_ = head_loss(hidden, head, targets, lambda rows: taught[rows], terms, 8, of_chunk=of_chunk)
        total.backward()
        return total, hidden.grad, head.grad

    for positions in (8, 21, 40):
        for ours, plain in zip(result(positions, compiled), result(positions, chunk_gradient), strict=True):
            torch.testing.assert_close(ours, plain, rtol=2e-5, atol=1e-6)


def test_a_listening_model_in_bf16_says_the_same_bits_under_autocast(teacher):
    batch = step_batch(teacher)
    for kind in ("llama", "qwen2"):
        model = tiny_model(kind, vocab_size=teacher.model.config.vocab_size).requires_grad_(False)
        before = {name: p.dtype for name, p in model.named_parameters()}

        def said(model=model):
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                return signals(model, teacher.layout, batch, with_attention=False)

        expected = said()
        hold_linears_in(model, torch.bfloat16)
        found = said()
        assert torch.equal(found.hidden, expected.hidden)
        assert all(torch.equal(a, b) for a, b in zip(found.layers, expected.layers, strict=True))
        changed = {name for name, p in model.named_parameters() if p.dtype != before[name]}
        assert changed == {name for name in before if "_proj." in name}


def test_compiling_is_automatic_on_cuda_alone():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [is_compiled(w, cuda) for w in ("auto", "on", "off")] == [True, True, False]
    assert [is_compiled(w, cpu) for w in ("auto", "on", "off")] == [False, True, False]
