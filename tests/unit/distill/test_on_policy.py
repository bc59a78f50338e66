"""On-policy batches: the student's own words in the teacher's hands, reproducible and only when asked for."""

from dataclasses import replace

import pytest
import torch

from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.on_policy import OnPolicyBatches, speaks_itself
from slimtts.distill.training import TrainingJob, train
from slimtts.params import DistillStudentParams, LossParams
from slimtts.pruning.surgery import remove_layers
from slimtts.testing.tiny import tiny_utterances

RETAINED = (0, 3)


@pytest.fixture
def student(teacher):
    return remove_layers(teacher.model, RETAINED)


def batches(student, teacher, share=1.0, steps=4, seed=2):
    recorded = PairSampler(teacher, tiny_utterances(20), 96, seed)
    return OnPolicyBatches(student, teacher, recorded, steps, share, max_new_tokens=6)


def test_the_second_half_takes_its_share_evenly():
    turns = [speaks_itself(step, 40, 0.25) for step in range(40)]
    assert not any(turns[:20])
    assert turns[20:] == [False, False, False, True] * 5
    assert not any(speaks_itself(step, 40, 0.0) for step in range(40))
    assert all(speaks_itself(step, 40, 1.0) for step in range(20, 40))


def test_targets_are_what_the_student_says_after_a_recorded_prompt(student, teacher):
    batch = batches(student, teacher).spoken(step=3, rows=5)
    assert not batch.recorded
    first = teacher.layout.first_code_id
    utterances = tiny_utterances(20)
    for row in range(5):
        where = batch.is_target[row].nonzero().flatten()
        said = batch.targets[row, where].tolist()
        assert 1 <= len(said) <= 6
        # Each target is the next input, so the context is the student's own speech.
        following = batch.ids[row, where[1:]].tolist()
        assert following == [first + code for code in said[:-1]]
        prompt_codes = [i - first for i in batch.ids[row, : where[0] + 1].tolist() if 0 <= i - first < 16]
        assert any(tuple(prompt_codes) == u.codes for u in utterances)


def test_same_step_and_weights_say_the_same_and_other_steps_do_not(student, teacher):
    one, same = (batches(student, teacher).spoken(step=3, rows=4) for _ in range(2))
    assert torch.equal(one.ids, same.ids)
    other = batches(student, teacher).spoken(step=2, rows=4)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)


def test_recorded_batches_of_the_first_half_are_those_of_the_sampler(student, teacher):
    ours = batches(student, teacher).from_step(0)
    plain = PairSampler(teacher, tiny_utterances(20), 96, 2).from_step(0)
    for _ in range(2):
        assert torch.equal(next(ours).ids, next(plain).ids)
    assert not next(ours).recorded


def test_nothing_is_learned_word_for_word_from_the_students_own_speech(student, teacher):
    loss = HealingLoss(PRESETS["default"], teacher.layout, teacher.model, RETAINED)
    batch = batches(student, teacher).spoken(step=3, rows=4)
    assert "cross_entropy" not in loss(student, batch)[1]
    assert "cross_entropy" in loss(student, replace(batch, recorded=True))[1]


def test_resumed_in_the_on_policy_half_equals_uninterrupted(teacher, tmp_path):
    knobs = DistillStudentParams(
        preset="default", loss=LossParams(), steps=8, tokens_per_step=96, optimizer="muon", learning_rate=3e-3,
        control_learning_rate=1e-3, warmup_share=0.2, checkpoint_every_steps=3, control=False, device="cpu", seed=2,
        on_policy_share=0.5, guidance_text=0.0, guidance_voice=0.0,
    )  # fmt: skip

    class Stop(RuntimeError):
        pass

    def run(folder, stop_at=None):
        model = remove_layers(teacher.model, RETAINED)
        source = batches(model, teacher, share=0.5, steps=8)
        loss = HealingLoss(PRESETS["default"], teacher.layout, teacher.model, RETAINED)

        def after_step(step):
            if step == stop_at:
                raise Stop

        job = TrainingJob("student", model, loss, source.from_step, folder, "mark", knobs.learning_rate)
        return train(job, knobs, torch.device("cpu"), after_step)

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "cut", stop_at=7)
    assert run(tmp_path / "cut").weights_sha256 == whole.weights_sha256
