"""Why a stage runs, as a person reads it; what DVC says for its own users stays out of the log."""

import pytest
import yaml

from tasks.stage_reasons import why_it_runs
from tasks.stage_runner import CHATTER

LOCK = {
    "schema": "2.0",
    "stages": {
        "distill_student": {
            "cmd": "slimtts distill_student",
            "params": {
                "params.yaml": {"distill_student": {"steps": 200, "loss": {"skew": 0.1}}, "decoding.top_p": 1.0}
            },
        }
    },
}


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(LOCK))
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(
            {"distill_student": {"steps": 300, "loss": {"skew": 0.2}, "seed": 1}, "decoding": {"top_p": 1.0}}
        )
    )
    return tmp_path


KNOBS = "distill_student.loss.skew 0.1 -> 0.2, distill_student.steps 200 -> 300, distill_student.seed None -> 1"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([{"changed deps": {"params.yaml": {"distill_student": "modified"}}}], f"again: {KNOBS}"),
        ([{"changed deps": {"pruned": "modified", "data": "deleted"}}], "again: pruned has changed, data is gone"),
        ([{"changed outs": {"student": "modified"}}], "again: its output student has changed"),
        (
            [{"changed outs": {"student": "deleted"}}, "changed command"],
            "again: its output student is gone, its command has changed",
        ),
        ([], "again: a stage before it has to"),
        (
            [{"changed deps": dict.fromkeys("abcdef", "new")}],
            "again: a is new, b is new, c is new, d is new and 2 more",
        ),
    ],
)  # fmt: skip
def test_a_stage_that_has_run_names_what_changed(workspace, changes, told):
    assert why_it_runs(workspace, "distill_student", changes) == told


def test_a_stage_that_never_ran_runs_for_the_first_time(workspace):
    never = [{"changed deps": {"data": "modified", "params.yaml": {"x": "new"}}}, {"changed outs": {"y": "deleted"}}]
    assert why_it_runs(workspace, "evaluate_student", never) == "first run"
    for content in ("", "no: stages", "[", "stages: 1", "\x00"):
        (workspace / "dvc.lock").write_text(content)
        assert why_it_runs(workspace, "distill_student", never) == "first run"


NOISE = [
    "Running stage 'subset_data':", "> slimtts subset_data", "Generating lock file 'dvc.lock'",
    "Updating lock file 'dvc.lock'", "To track the changes with git, run:", "\tgit add dvc.lock",
    "Use `dvc push` to send your updates to remote storage.", "WARNING: 'progress/subset_codes' is empty.",
    "Data and pipelines are up to date.", "'data' didn't change, skipping", "Stage 'x' didn't change, skipping",
]  # fmt: skip
NEWS = [
    "coverage chose 800 utterances", "training student: 120 of 600 steps, 04:10 left", "ERROR: failed to reproduce 'x'",
    "Stage 'subset_data' is cached - skipping run, checking out outputs", "WARNING: the disk is nearly full",
    "slimtts: teacher.source: observed 'x'", "checkpoint step-00000002 is passed over: it is damaged",
]  # fmt: skip


def test_chatter_is_left_out_and_news_are_not():
    assert [line for line in NOISE if not CHATTER.match(line)] == []
    assert [line for line in NEWS if CHATTER.match(line)] == []
