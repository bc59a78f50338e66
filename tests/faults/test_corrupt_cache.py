"""Bytes of DVC's cache that rot, or are edited: noticed and made again, never handed to a stage."""

import json
import logging
import os
import shutil

import pytest
import yaml

from slimtts.results import SubsetReport
from tasks import output_bytes
from tasks.output_bytes import remove_changed
from tasks.shared_outputs import take_over
from tasks.stage_runner import CACHE, run_stage, stale_stages
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


def change_a_byte(workspace, stage):
    """Of each object; size, time and mode stay, so that DVC sees nothing."""
    for path in set(objects_of(workspace, stage)):
        status, content = path.stat(), path.read_bytes()
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.write(bytes([content[0] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        path.chmod(status.st_mode)


@pytest.mark.parametrize("damage", [spoil, change_a_byte])
@pytest.mark.parametrize("lost", ["workspace kept", "workspace removed"])
def test_corrupted_object_is_made_again(toy_workspace, toy_checkout, started, lost, damage):
    for stage in STAGES:
        run_stage(stage, toy_workspace, 60, logger)
    wanted = SubsetReport.read(toy_workspace / "data" / "report.json")
    good = {path: path.read_bytes() for path in objects_of(toy_workspace, "subset_data")}
    started()
    damage(toy_workspace, "subset_data")
    if lost == "workspace removed":
        shutil.rmtree(toy_workspace)
        prepare_workspace("toy", "demo", [], toy_workspace.parent, toy_checkout)
    for stage in STAGES:
        run_stage(stage, toy_workspace, 60, logger)
    assert "subset_data" in started(), "it ran again, because nothing good was left to restore"
    assert SubsetReport.read(toy_workspace / "data" / "report.json") == wanted
    assert stale_stages(toy_workspace, *STAGES) == {}
    assert {path: path.read_bytes() for path in objects_of(toy_workspace, "subset_data")} == good


def test_a_damaged_output_of_another_run_is_not_taken_over(toy_workspace, toy_checkout, started):
    for stage in STAGES[:2]:
        run_stage(stage, toy_workspace, 60, logger)
    wanted = (toy_workspace / "scores" / "scores.json").read_bytes()
    change_a_byte(toy_workspace, "score_layers")
    other = prepare_workspace("other", "demo", ["prune_layers.keep_layers=4"], toy_workspace.parent, toy_checkout)
    assert take_over(toy_workspace, other, STAGES[:2], logger)
    assert not (other / "scores").exists()
    started()
    for stage in STAGES[:2]:
        run_stage(stage, other, 60, logger)
    assert started() == ["score_layers"]
    assert (other / "scores" / "scores.json").read_bytes() == wanted


def test_an_unchanged_output_is_read_once(toy_workspace, started, monkeypatch):
    run_stage("subset_data", toy_workspace, 60, logger)
    monkeypatch.setattr(output_bytes, "SETTLED_NS", 0)
    assert remove_changed(toy_workspace, "subset_data", toy_workspace.parent / CACHE) == []
    monkeypatch.setattr(output_bytes.hashlib, "file_digest", None)
    assert remove_changed(toy_workspace, "subset_data", toy_workspace.parent / CACHE) == []
    (toy_workspace / output_bytes.VERIFIED).write_text("{")
    with pytest.raises(TypeError):
        remove_changed(toy_workspace, "subset_data", toy_workspace.parent / CACHE)
