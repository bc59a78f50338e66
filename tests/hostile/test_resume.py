"""Damaged state that is resumed, and odd names and settings of a run: one line each, or passed over with one line."""

import json
import os
import shutil

import pytest
import torch

from slimtts.checkpoints import DONE, save_checkpoint
from slimtts.storage import file_hashes

pytestmark = pytest.mark.hostile

NAMES = {
    "empty": "", "up": "..", "above": "../x", "absolute": "/etc/x", "hidden": ".x", "spaces": "a b", "newline": "a\nb",
    "nul": "a\0b", "escape": "\x1b[31mred", "300 characters": "n" * 300, "5,000 characters": "n" * 5000,
    "half an emoji": "\ud83d", "not ascii": "größe", "option": "--help", "slash": "a/b", "backslash": "a\\b",
    "the database": "mlflow.db", "the artifacts": "mlartifacts", "a fifo": "pipe", "a link to nowhere": "dangling",
}  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0")
    (tmp_path / "mlartifacts" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("/nowhere")
    return tmp_path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_is_no_run_is_refused_in_a_line(refused, runs, name):
    before = sorted(path.name for path in runs.iterdir())
    assert "--name" in refused("tasks.workspace:check_place", [runs, name])
    assert len(refused("tasks.workspace:prepare_workspace", [name, "demo", [], runs])) < 500
    assert sorted(path.name for path in runs.iterdir()) == before


OVERRIDES = {
    "nothing": "", "no dot": "steps=7", "no value": "distill_student.steps", "no key": "distill_student.=7",
    "half a list": "distill_student.steps=[1", "a list in lists": "distill_student.loss=" + "[" * 1500,
    "a mapping in mappings": "distill_student.loss=" + "{a: " * 150 + "1" + "}" * 150,
    "a bomb of aliases": "distill_student.loss={a: &a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]}",
    "an alias of itself": "subset_data.source=&a [*a]", "a python object": "subset_data.source=!!python/object:os.x {}",
    "a number of 5,000 digits": "distill_student.steps=1" + "0" * 3900, "infinity": "decoding.temperature=.inf",
    "not a number": "decoding.temperature=.nan", "a date": "distill_student.steps=2024-01-01",
    "a nul": 'subset_data.source="a\\0b"', "an escape": 'subset_data.source="\\e[31m"', "a line feed": "a.b=x\ny: z",
    "half an emoji": "subset_data.source=\ud83d", "a very long value": "subset_data.source=" + "x" * 100_000,
    "an unknown section": "__class__.x=1", "a deeper key": "distill_student.loss.temperature=2",
    "a text for a number": "distill_student.steps=many", "a boolean for a number": "distill_student.steps=[true]",
    "binary": "distill_student.steps=!!binary aGVsbG8=",
    "a negative layer": "prune_layers.retained=[-1]", "a tag without meaning": "distill_student.steps=!x 1",
}  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES)
def test_a_setting_of_an_odd_kind_is_refused_in_a_line(refused, override):
    assert len(refused("tasks.workspace:compose_params", ["demo", [override]])) < 20_000


def put(path, content):
    path.write_bytes(content)


def lost_tensor(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "tensors.safetensors")
    tensors.pop("model/m/weight")
    save_file(tensors, path / "tensors.safetensors")


def with_hashes(path, state):
    """A state.json whose hash is right and whose content is not."""
    (path / "state.json").write_text(state)
    (path / DONE).unlink()
    (path / DONE).write_text(json.dumps(file_hashes(path)))


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()


CHECKPOINTS = {
    "empty tensors": lambda path: put(path / "tensors.safetensors", b""),
    "a header of 2^63 bytes": lambda path: put(path / "tensors.safetensors", b"\xff" * 7 + b"\x7f{}"),
    "a pickle": lambda path: put(path / "tensors.safetensors", b"\x80\x04cos\nsystem\n."),
    "half": lambda path: os.truncate(path / "tensors.safetensors", 100),
    "no tensors": lambda path: (path / "tensors.safetensors").unlink(),
    "a folder for tensors": lambda path: replaced_by_folder(path / "tensors.safetensors"),
    "a lost tensor": lost_tensor,
    "empty state": lambda path: put(path / "state.json", b""),
    "state of bytes": lambda path: put(path / "state.json", b"\xff\xfe\x00"),
    "deep state": lambda path: with_hashes(path, "[" * 100_000),
    "state of a list": lambda path: with_hashes(path, "[]"),
    "state without a step": lambda path: with_hashes(path, '{"fingerprint": "one"}'),
    "a step of text": lambda path: with_hashes(path, '{"fingerprint": "one", "step": "2", "loop": {}}'),
    "a loop of text": lambda path: with_hashes(path, '{"fingerprint": "one", "step": 2, "loop": "x"}'),
    "hashes of bytes": lambda path: put(path / DONE, b"\xff\xfe"),
    "hashes of numbers": lambda path: put(path / DONE, b'{"state.json": 1}'),
    "deep hashes": lambda path: put(path / DONE, b"[" * 100_000),
    "hashes of another file": lambda path: put(path / DONE, b'{"../../etc/passwd": "0"}'),
    "no hashes": lambda path: put(path / DONE, b""),
    "a folder for hashes": lambda path: replaced_by_folder(path / DONE),
}


@pytest.mark.parametrize("is_last", [False, True], ids=["one before", "none before"])
@pytest.mark.parametrize("damage", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_is_passed_over_with_a_line(attempt, tmp_path, damage, is_last):
    for step in (1, 2):
        newest = save_checkpoint(tmp_path, step, "one", {"m": torch.nn.Linear(2, 2)}, {}, {})
    if is_last:
        shutil.rmtree(tmp_path / "step-00000001")
    damage(newest)
    made = attempt("slimtts.checkpoints:load_latest", [tmp_path, "one"])
    assert made.outcome == "accepted", made
    assert made.memory_mib < 200, made
    lines = [line for line in made.message.splitlines() if "is passed over" in line]
    assert len(lines) == 1 and str(newest) in lines[0] and lines[0].isprintable(), made
    assert ("starts anew" in made.message) == is_last


CURVES = {
    "bytes": b"\xff\xfe\x00\n", "no objects": b"1\n[]\nnull\n", "deep": b'{"a":' * 50_000 + b"\n", 
    "control": b"\x1b[2J\n",
    "no end": b'{"name": "student", "step": 0', "a step of a million digits": b'{"step": 1' + b"0" * 1_000_000 + b"}\n",
    "a long line": b"x" * 5_000_000 + b"\n", "nul": b"\0" * 4096 + b"\n",
}  # fmt: skip


@pytest.mark.parametrize("content", CURVES.values(), ids=CURVES)
def test_a_damaged_curve_never_blocks(attempt, tmp_path, content):
    path = tmp_path / "curves.jsonl"
    path.write_bytes(b'{"name": "student", "step": 0, "loss": 1.0}\n' + content)
    made = attempt("slimtts.curves:cut_curve", [path, 1])
    assert made.outcome == "accepted", made
    assert path.read_text() == '{"name": "student", "step": 0, "loss": 1.0}\n'
    assert ("damaged lines are left out" in made.message) == (b"\n" in content)
