"""Bytes of DVC's cache that rot, or are edited: noticed and made again, never handed to a stage."""

import json
import logging
import shutil

import pytest
import yaml

from slimtts.results import SubsetReport
from tasks.stage_runner import run_stage, stale_stages
from tasks.workspace import prepare_workspace

STAGES = ("subset_data", "score_layers", "prune_layers")
logger = logging.getLogger("test")


def objects_of(workspace, stage):
    """The cache's file of each file among a stage's outputs; DVC does not cache the progress of a stage."""
    cache = workspace.parent / ".dvc-cache" / "files" / "md5"
    for out in yaml.safe_load((workspace / "dvc.lock").read_text())["stages"][stage]["outs"]:
        found = cache / out["md5"][:2] / out["md5"][2:]
        if out["path"].startswith("progress/"):
            continue
        if out["md5"].endswith(".dir"):
            for entry in json.loads(found.read_text()):
                yield cache / entry["md5"][:2] / entry["md5"][2:]
        else:
            yield found


def spoil(workspace, stage):
    for path in set(objects_of(workspace, stage)):
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.write(b"rotten")


@pytest.mark.parametrize("lost", ["workspace kept", "workspace removed"])
def test_corrupted_object_is_made_again(toy_workspace, toy_checkout, started, lost):
    for stage in STAGES:
        run_stage(stage, toy_workspace, 60, logger)
    wanted = SubsetReport.read(toy_workspace / "data" / "report.json")
    started()
    spoil(toy_workspace, "subset_data")
    if lost == "workspace removed":
        shutil.rmtree(toy_workspace)
        prepare_workspace("toy", "demo", [], toy_workspace.parent, toy_checkout)
    for stage in STAGES:
        run_stage(stage, toy_workspace, 60, logger)
    assert "subset_data" in started(), "it ran again, because nothing good was left to restore"
    assert SubsetReport.read(toy_workspace / "data" / "report.json") == wanted
    assert stale_stages(toy_workspace, *STAGES) == {}
    assert all(b"rotten" not in path.read_bytes() for path in objects_of(toy_workspace, "subset_data"))
