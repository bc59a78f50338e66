"""Guidance distillation: the student learns the mixture, and nothing changes when it is off."""

from dataclasses import replace

import pytest
import torch

from slimtts.decoding.guidance import UNGUIDED, Guidance, guided_log_probabilities
from slimtts.distill import healing, losses
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss, Signals, signals
from slimtts.pruning.surgery import remove_layers
from slimtts.testing.tiny import tiny_utterances

RETAINED = (0, 3)
BOTH = Guidance(1.0, 0.5)


def sampler(teacher, guidance=UNGUIDED):
    return PairSampler(teacher, tiny_utterances(20), 96, 5, guidance)


def healing_loss(teacher, guidance):
    return HealingLoss(PRESETS["default"], teacher.layout, teacher.model, RETAINED, guidance)


def guided_by_hand(teacher, batch, guidance):
    with torch.no_grad():
        passes = [
            signals(teacher.model, teacher.layout, part, with_attention=False).logits()
            for part in (batch, batch.without_text, batch.without_voice)
        ]
    return guided_log_probabilities(*passes, guidance)


def test_the_kl_is_to_the_guided_distribution_and_the_rest_is_as_before(teacher):
    student = remove_layers(teacher.model, RETAINED)
    batch = next(sampler(teacher, BOTH).from_step(0))
    plain = healing_loss(teacher, UNGUIDED)(student, batch)[1]
    guided = healing_loss(teacher, BOTH)(student, batch)[1]
    logits_s = signals(student, teacher.layout, batch, with_attention=False).logits()
    expected = losses.skew_kl(logits_s, guided_by_hand(teacher, batch, BOTH)).item()
    assert guided["skew_kl"] == pytest.approx(expected, rel=1e-5)
    assert guided["skew_kl"] != pytest.approx(plain["skew_kl"], rel=1e-3)
    assert {name: guided[name] for name in ("latent", "cross_entropy")} == {
        name: plain[name] for name in ("latent", "cross_entropy")
    }


def test_loss_and_gradient_are_zero_where_the_student_gives_the_guided_distribution(teacher, monkeypatch):
    batch = next(sampler(teacher, BOTH).from_step(0))
    # Any offset: logits are not log-probabilities.
    logits = (guided_by_hand(teacher, batch, BOTH) + 3.0).requires_grad_()
    student = object()

    def answered(model, layout, part, with_attention):
        if model is student:
            return Signals(torch.zeros(()), [], [], logits, torch.eye(logits.shape[1]))
        return signals(model, layout, part, with_attention)

    monkeypatch.setattr(healing, "signals", answered)
    preset = replace(PRESETS["default"], cross_entropy=0.0, latent=0.0)
    total, terms = HealingLoss(preset, teacher.layout, teacher.model, RETAINED, BOTH)(student, batch)
    total.backward()
    assert abs(terms["skew_kl"]) < 1e-6
    assert float(logits.grad.abs().max()) < 1e-7


def test_off_changes_neither_batch_nor_loss(teacher):
    student = remove_layers(teacher.model, RETAINED)
    off = next(sampler(teacher, Guidance(0.0, 0.0)).from_step(3))
    plain = next(PairSampler(teacher, tiny_utterances(20), 96, 5).from_step(3))
    assert torch.equal(off.ids, plain.ids) and torch.equal(off.targets, plain.targets)
    assert off.without_text is None and off.without_voice is None
    without = HealingLoss(PRESETS["default"], teacher.layout, teacher.model, RETAINED)
    assert healing_loss(teacher, Guidance(0.0, 0.0))(student, off)[1] == without(student, plain)[1]


def test_no_teacher_pass_is_spent_on_a_term_of_weight_zero(teacher, monkeypatch):
    passes = []
    monkeypatch.setattr(healing, "signals", lambda *args: passes.append(args) or signals(*args))
    batch = next(sampler(teacher, BOTH).from_step(0))
    student = remove_layers(teacher.model, RETAINED)
    preset = replace(PRESETS["default"], skew_kl=0.0)
    HealingLoss(preset, teacher.layout, teacher.model, RETAINED, BOTH)(student, batch)
    assert len(passes) == 2


def test_only_the_utterances_own_codes_are_targets_of_every_pass(teacher):
    codes = {u.codes for u in tiny_utterances(20)}
    batch = next(sampler(teacher, BOTH).from_step(0))
    for part in (batch, batch.without_text, batch.without_voice):
        for row in range(len(batch.ids)):
            said = part.targets[row][part.is_target[row]].tolist()
            assert tuple(said[:-1]) in codes and said[-1] == teacher.layout.num_codes
            assert said == batch.targets[row][batch.is_target[row]].tolist()


def test_companions_move_with_their_batch(teacher):
    moved = next(sampler(teacher, Guidance(1.0, 0.0)).from_step(0)).to(torch.device("meta"))
    assert moved.without_text.ids.device.type == moved.without_text.targets.device.type == "meta"
    assert moved.without_voice is None


def test_a_batch_without_companions_is_refused(teacher):
    student = remove_layers(teacher.model, RETAINED)
    with pytest.raises(ValueError, match="without_text"):
        healing_loss(teacher, BOTH)(student, next(sampler(teacher).from_step(0)))
