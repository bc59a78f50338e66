"""Checkpoints follow a training to S3, and lead another machine to where it stopped."""

import logging
import time

import pytest

from slimtts.params import StorageParams
from slimtts.workspace import Workspace
from tasks.checkpoint_mirror import mirrored_checkpoints, newest_checkpoints, read_manifest

logger = logging.getLogger("test")
WITHIN_S = 60.0


def write_checkpoint(workspace, step):
    folder = workspace.checkpoints / "student" / "mark" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "tensors.safetensors").write_bytes(bytes([step]) * 1000)
    (folder.parent / "curves.jsonl").write_text(f'{{"step": {step}}}\n')
    (folder / "DONE").touch()


def wait_for(reached):
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def storage(stack, monkeypatch, request):
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    return StorageParams(dvc_remote=f"s3://slimtts-dvc/{request.node.name.replace('_', '-')}", s3_endpoint="")


def newest_there(s3, url):
    return [training.newest for training in read_manifest(s3, url).trainings.values()]


def test_another_machine_goes_on_where_the_first_was_lost(storage, s3, tmp_path):
    here, there = Workspace(tmp_path / "a" / "run"), Workspace(tmp_path / "b" / "run")
    url = f"{storage.dvc_remote}/checkpoints/run"
    with pytest.raises(KeyboardInterrupt), mirrored_checkpoints(here, storage, logger, every_s=0.05):
        write_checkpoint(here, 4)
        wait_for(lambda: newest_there(s3, url) == ["step-00000004"])
        write_checkpoint(here, 8)
        wait_for(lambda: newest_there(s3, url) == ["step-00000008"])
        raise KeyboardInterrupt
    with mirrored_checkpoints(there, storage, logger, every_s=60):
        (found,) = newest_checkpoints(there.checkpoints)
        assert found.name == "step-00000008"
        assert (found / "tensors.safetensors").read_bytes() == b"\x08" * 1000
        assert (found.parent / "curves.jsonl").read_text() == '{"step": 8}\n'
    assert read_manifest(s3, url).trainings == {}, "a good end leaves no copy"
    assert "Contents" not in s3.list_objects_v2(Bucket="slimtts-dvc", Prefix=url.removeprefix("s3://slimtts-dvc/"))


def test_a_workspace_with_work_of_its_own_takes_nothing(storage, s3, tmp_path):
    first, second = Workspace(tmp_path / "a" / "run"), Workspace(tmp_path / "b" / "run")
    url = f"{storage.dvc_remote}/checkpoints/run"
    with pytest.raises(KeyboardInterrupt), mirrored_checkpoints(first, storage, logger, every_s=0.05):
        write_checkpoint(first, 8)
        wait_for(lambda: newest_there(s3, url) == ["step-00000008"])
        raise KeyboardInterrupt
    write_checkpoint(second, 2)
    with mirrored_checkpoints(second, storage, logger, every_s=60):
        assert [step.name for step in newest_checkpoints(second.checkpoints)] == ["step-00000002"]


def test_training_goes_on_while_s3_is_away(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    away = StorageParams(dvc_remote="s3://slimtts-dvc/away", s3_endpoint="http://127.0.0.1:9")
    done = []
    with caplog.at_level(logging.WARNING), mirrored_checkpoints(Workspace(tmp_path), away, logger, every_s=60):
        done.append("trained")
    assert done == ["trained"]
    assert "starts without a look at the copy of its checkpoints" in caplog.text
