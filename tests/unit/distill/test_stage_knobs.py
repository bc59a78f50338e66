"""The stage with its knobs for speed and memory: the same curve, and knobs that contradict each other are refused."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slimtts.data.manifest import write_utterances
from slimtts.distill import teacher_cache
from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from slimtts.pruning.surgery import remove_layers
from slimtts.results import DistillReport, PrunePlan, SubsetReport
from slimtts.stages import distill_student as stage
from slimtts.testing.tiny import tiny_utterances
from slimtts.workspace import Workspace

PARAMS = load_params(Path("params.yaml"))
SMALL = {"steps": 4, "tokens_per_step": 200, "device": "cpu", "control": True, "learning_rate": 1e-3}


@pytest.fixture
def healed(teacher, tmp_path, monkeypatch):
    """knobs -> losses of every step of the student, and the student's weights file."""
    monkeypatch.setattr(stage, "load_teacher", lambda _: replace(teacher, model=copy.deepcopy(teacher.model)))

    def run(name, **knobs):
        workspace = Workspace(tmp_path / name)
        workspace.data.mkdir(parents=True)
        write_utterances(workspace.data / "train.jsonl", tiny_utterances(12))
        SubsetReport(
            strategy="random", teacher_hours=1, share=0.01, word_coverage=1, splits={}, dropped={}, data_sha256="d"
        ).write(workspace.data / "report.json")  # fmt: skip
        remove_layers(teacher.model, [0, 3]).save_pretrained(workspace.pruned / "model")
        PrunePlan(
            num_layers=4, retained=[0, 3], dropped=[1, 2], teacher_parameters=2, student_parameters=1,
            teacher_sha256="t",
        ).write(workspace.pruned / "plan.json")  # fmt: skip
        chosen = PARAMS.distill_student.model_copy(update=SMALL | knobs)
        stage.distill_student(PARAMS.model_copy(update={"distill_student": chosen}), workspace)
        lines = (workspace.student / "student.jsonl").read_text().splitlines()
        weights = (workspace.student / "student" / "model.safetensors").read_bytes()
        return [json.loads(line)["loss"] for line in lines], weights

    return run


def test_recomputing_changes_no_bit_and_the_cache_no_more_than_fp16_does(healed, tmp_path, monkeypatch):
    losses, weights = healed("plain")
    assert healed("recomputed", activation_checkpointing=True) == (losses, weights)
    folder = str(tmp_path / "cache")
    first, _ = healed("first", teacher_cache=folder)
    caches = []
    made = teacher_cache.TeacherCache.__init__
    monkeypatch.setattr(teacher_cache.TeacherCache, "__init__", lambda self, *a: caches.append(self) or made(self, *a))
    # Another rate: the rows are the same, so the teacher is not asked at all.
    healed("second", teacher_cache=folder, learning_rate=2e-3)
    again, _ = healed("third", teacher_cache=folder)
    assert [cache.misses for cache in caches] == [0, 0] and all(cache.hits for cache in caches)
    assert again == first == pytest.approx(losses, rel=2e-3)


def test_packed_rows_train(healed):
    losses, _ = healed("packed", packed_row_tokens=100)
    assert len(losses) == SMALL["steps"] and losses[-1] < losses[0] * 1.5


def test_a_cache_that_cannot_serve_the_loss_is_refused_before_training(healed, tmp_path):
    for knobs, observed in (
        ({"preset": "spade"}, "attention, embedding"),
        ({"guidance_text": 1.0}, "guidance without_text"),
    ):
        with pytest.raises(InvalidInputError, match=rf"distill_student.teacher_cache: observed a loss with {observed}"):
            healed(observed, teacher_cache=str(tmp_path / "cache"), **knobs)


def test_speed_and_memory_do_not_name_a_training_but_packing_does():
    knobs = PARAMS.distill_student
    same = {"activation_checkpointing": True, "compile": "on", "teacher_cache": "x"}
    assert stage.fingerprint(knobs) == stage.fingerprint(knobs.model_copy(update=same))
    assert stage.fingerprint(knobs) != stage.fingerprint(knobs.model_copy(update={"packed_row_tokens": 64}))


def test_a_shorter_control_leaves_every_training_its_name(healed, tmp_path):
    """Progress of a training is known by this name: a version that adds the knob goes on with what is there."""
    knobs = PARAMS.distill_student
    shorter = knobs.model_copy(update={"control_steps": 7})
    names = [stage.fingerprint(one) for one in (knobs, shorter, stage.knobs_of("student", shorter))]
    assert len({*names, stage.fingerprint(stage.knobs_of("control", knobs))}) == 1
    assert "control_steps" not in knobs.model_dump(exclude=stage.WITHOUT_EFFECT)
    assert stage.fingerprint(stage.knobs_of("control", shorter)) not in names
    losses, weights = healed("whole")
    assert healed("short", control_steps=2) == (losses, weights), "the student is not touched"
    assert len((tmp_path / "short" / "student" / "control.jsonl").read_text().splitlines()) == 2
    report = DistillReport.read(tmp_path / "short" / "student" / "report.json")
    assert (report.student.steps, report.control.steps) == (SMALL["steps"], 2)


def test_a_split_without_an_utterance_is_one_line(healed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "tiny_utterances", lambda _: [])
    with pytest.raises(InvalidInputError, match=r"train\.jsonl: observed no rows; allowed: at least one"):
        healed("empty")
