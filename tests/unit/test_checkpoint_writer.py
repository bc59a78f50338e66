"""Checkpoints that are written beside the training: a true copy, errors that arrive, kills that cost nothing."""

import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch import nn

from slimtts import checkpoints
from slimtts.checkpoints import CheckpointWriter, load_latest, restore, save_checkpoint

KILLED_WHILE_WRITING = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    import torch
    from slimtts import checkpoints

    model, written = torch.nn.Linear(2, 2), checkpoints.save_file

    def half(tensors, path):
        written(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        os.write(1, b"half\\n")
        time.sleep(600)

    with checkpoints.CheckpointWriter(Path(sys.argv[1]), "one") as writer:
        writer.save(1, {"m": model}, {}, {"loss": 1.0})
        writer.wait()
        checkpoints.save_file = half
        writer.save(2, {"m": model}, {}, {"loss": 2.0})
        os.write(1, b"training goes on\\n")
    """
)


def saved_weight(folder):
    return load_latest(folder, "one").tensors["model/m/weight"]


def test_a_kill_in_the_middle_of_writing_leaves_the_former_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert {process.stdout.readline().strip() for _ in range(2)} == {"half", "training goes on"}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert load_latest(tmp_path, "one").step == 1
    assert list(tmp_path.glob(".step-*")), "the kill came while it wrote"
    save_checkpoint(tmp_path, 2, "one", {"m": nn.Linear(2, 2)}, {}, {"loss": 2.0})
    assert load_latest(tmp_path, "one").step == 2
    assert not list(tmp_path.glob(".step-*"))


def test_what_is_written_is_the_model_of_that_step_while_training_goes_on(tmp_path, monkeypatch):
    may_write, written = threading.Event(), checkpoints.save_file

    def late(tensors, path):
        assert may_write.wait(60)
        written(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", late)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    weight = model.weight.detach().clone()
    momentum = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    with CheckpointWriter(tmp_path, "one") as writer:
        writer.save(1, {"m": model}, {"adamw": optimizer}, {"loss": 1.0})
        optimizer.step()
        assert load_latest(tmp_path, "one") is None
        may_write.set()
    assert torch.equal(saved_weight(tmp_path), weight)
    assert not torch.equal(model.weight, weight)
    assert torch.equal(load_latest(tmp_path, "one").tensors["optimizer/adamw/0/exp_avg"], momentum)


@pytest.mark.parametrize("ends", [True, False], ids=["at the end", "by the next save"])
def test_an_error_of_the_writer_reaches_the_training(tmp_path, monkeypatch, ends):
    def full(_tensors, _path):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), CheckpointWriter(tmp_path, "one") as writer:
        monkeypatch.setattr(checkpoints, "save_file", full)
        writer.save(1, {"m": nn.Linear(2, 2)}, {}, {})
        if not ends:
            writer.save(2, {"m": nn.Linear(2, 2)}, {}, {})
            pytest.fail("the first save's error was lost")
    assert load_latest(tmp_path, "one") is None


def test_an_error_of_the_training_waits_for_the_writer_and_is_the_one_that_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="training"), CheckpointWriter(tmp_path, "one") as writer:
        writer.save(1, {"m": nn.Linear(2, 2)}, {}, {})
        raise RuntimeError("training")
    assert load_latest(tmp_path, "one").step == 1


def test_the_random_state_of_cuda_is_kept_where_there_is_one(tmp_path, monkeypatch):
    state, restored = torch.arange(16, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
    save_checkpoint(tmp_path, 1, "one", {}, {}, {})
    restore(load_latest(tmp_path, "one"), {}, {})
    assert torch.equal(restored[0], state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore(load_latest(tmp_path, "one"), {}, {})
    assert len(restored) == 1, "a checkpoint of a GPU goes on without one"
