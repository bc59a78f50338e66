"""A short training by the stage's own parts follows the CPU's, in every form that CUDA has."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from slimtts.distill.acceleration import accelerated, compiled_chunk_gradient, hold_linears_in, is_compiled
from slimtts.distill.batches import PairSampler
from slimtts.distill.head_loss import chunk_gradient
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.training import TrainingJob, multiplies_bf16, train
from slimtts.params import load_params
from slimtts.pruning.surgery import remove_layers
from slimtts.stages.distill_student import set_attention
from slimtts.testing.tiny import tiny_teacher, tiny_utterances

pytestmark = pytest.mark.gpu
PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"
FORMS = {
    "eager": {},
    "compiled": dict(compile="on"),
    "recomputed": dict(activation_checkpointing=True),
    "adamw": dict(optimizer="adamw"),
    "micro_batches": dict(micro_batches=3),
    "packed": dict(packed_row_tokens=100),
    "packed, compiled": dict(packed_row_tokens=100, compile="on"),
}


class Stopped(Exception):
    """The training is interrupted here."""


def healed(device, steps, folder, stop=None, **changes):
    """Losses of a short training, and the student."""
    small = dict(steps=steps, tokens_per_step=400, checkpoint_every_steps=4, compile="off", learning_rate=1e-3)
    knobs = load_params(PARAMS).distill_student.model_copy(update=small | changes)
    teacher = tiny_teacher(folder / "teacher")
    sampler = PairSampler(
        teacher, tiny_utterances(40), knobs.tokens_per_step, 1, packed_row_tokens=knobs.packed_row_tokens
    )
    student = remove_layers(teacher.model, [0, 2]).to(device)
    taught_by = teacher.model.to(device).requires_grad_(False)
    if multiplies_bf16(device):
        hold_linears_in(taught_by, torch.bfloat16)
    preset, compiled = PRESETS["default"], is_compiled(knobs.compile, device)
    of_chunk = compiled_chunk_gradient() if compiled else chunk_gradient
    loss = HealingLoss(preset, teacher.layout, taught_by, (0, 2), of_chunk=of_chunk)
    set_attention(taught_by, False, knobs, preset)
    set_attention(student, True, knobs, preset)

    def after(step):
        if step == stop:
            raise Stopped

    with accelerated(student, compiled, knobs.activation_checkpointing), accelerated(taught_by, compiled, False):
        job = TrainingJob("toy", student, loss, sampler.from_step, folder / "progress", "mark", knobs.learning_rate)
        with suppress(Stopped):
            train(job, knobs, device, after)
    lines = [json.loads(line) for line in (folder / "progress" / "curves.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines]), student


@pytest.mark.parametrize("form", FORMS)
def test_losses_follow_the_cpu(device, on_cuda, assert_close, tmp_path, form):
    if "compiled" in form and not on_cuda:
        pytest.skip("compiling for a CPU takes minutes and is nobody's default")
    changes = FORMS[form]
    (tmp_path / "cpu").mkdir()
    (tmp_path / "device").mkdir()
    expected, _ = healed(torch.device("cpu"), 8, tmp_path / "cpu", **changes | {"compile": "off"})
    actual, _ = healed(device, 8, tmp_path / "device", **changes)
    assert expected[-1] < expected[0]
    assert_close(actual, expected, 2e-2)


def test_a_stopped_training_goes_on(device, assert_close, tmp_path):
    """Within rounding: flash attention's backward adds in no fixed order."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, _ = healed(device, 12, tmp_path / "whole")
    healed(device, 12, tmp_path / "parts", stop=6)
    parts, _ = healed(device, 12, tmp_path / "parts")
    assert len(parts) == 12
    assert_close(parts, whole, 1e-3)
