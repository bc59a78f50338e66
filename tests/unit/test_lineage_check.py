"""The hashes of a lineage are taken from bytes, not from what reports say of them."""

import json
import shutil
import subprocess
import sys

import pytest

from slimtts.data.manifest import data_sha256, write_utterances
from slimtts.errors import InvalidInputError
from slimtts.lineage_check import observed_hashes
from slimtts.teachers.checkpoint import hash_weights
from slimtts.teachers.nano import bundle_folder
from slimtts.testing.tiny import tiny_utterances
from slimtts.workspace import Workspace


@pytest.fixture
def workspace(tmp_path, teacher, request):
    space = Workspace(tmp_path)
    shutil.copy(request.config.rootpath / "params.yaml", space.params)
    space.data.mkdir()
    for split in ("train", "selection", "test"):
        write_utterances(space.data / f"{split}.jsonl", tiny_utterances(2))
    (space.student / "student").mkdir(parents=True)
    for file in teacher.folder.glob("*.safetensors"):
        shutil.copy(file, space.student / "student")
    return space


def test_what_is_there_is_hashed(workspace):
    observed = observed_hashes(workspace)
    assert observed == {
        "data": data_sha256(workspace.data),
        "teacher": hash_weights(bundle_folder() / "teacher"),
        "student": hash_weights(workspace.student / "student"),
    }
    (weights,) = (workspace.student / "student").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes() + b" ")
    assert observed_hashes(workspace)["student"] != observed["student"]


def test_what_is_missing_is_one_line(workspace):
    (workspace.data / "test.jsonl").unlink()
    with pytest.raises(InvalidInputError, match=r"observed no test\.jsonl"):
        observed_hashes(workspace)
    command = [sys.executable, "-m", "slimtts.lineage_check", str(workspace.root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    write_utterances(workspace.data / "test.jsonl", tiny_utterances(2))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == observed_hashes(workspace)
