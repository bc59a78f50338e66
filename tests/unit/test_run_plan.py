"""Before a start: what a former start has finished, under the parameters that are wanted now."""

import subprocess
import sys
from pathlib import Path

import pytest

import tasks.run_plan
from slimtts.errors import InvalidInputError
from slimtts.workspace import STAGES
from tasks.run_plan import finished_stages, print_plan
from tasks.workspace import compose_params, prepare_workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A workspace whose outputs are all there, as DVC would say."""
    workspace = prepare_workspace("run", "demo", [], tmp_path)
    (workspace / "dvc.lock").write_text("")
    monkeypatch.setattr(tasks.run_plan, "stale_stages", lambda _: {})
    return workspace


@pytest.mark.parametrize(
    ("change", "finished"),
    [
        ([], STAGES),
        (["register_model.min_speedup=1.5"], STAGES[:5]),
        (["distill_student.steps=7"], STAGES[:3]),
        (["decoding.max_new_tokens=50"], ()),
        (["storage.dvc_remote=s3://bucket/p"], STAGES),
    ],
)
def test_a_changed_knob_redoes_its_stage_and_all_behind_it(started, change, finished):
    assert finished_stages(started, compose_params("demo", change)) == list(finished)


def test_what_dvc_finds_changed_is_not_finished(started, monkeypatch):
    monkeypatch.setattr(tasks.run_plan, "stale_stages", lambda _: {"prune_layers": ["x"]})
    assert finished_stages(started, compose_params("demo", [])) == ["subset_data", "score_layers"]


def test_a_new_run_has_finished_nothing(tmp_path):
    assert finished_stages(tmp_path, compose_params("demo", [])) == []


def test_a_plan_that_cannot_be_made_is_one_line(tmp_path):
    params = compose_params("demo", ["subset_data.source=/nowhere.jsonl"])
    with pytest.raises(InvalidInputError, match="nowhere"):
        print_plan(tmp_path / "run", params, as_json=False)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(tmp_path):
    code = (
        "import flows.compress_model as f\n"
        "def stop(*_, **__): raise KeyboardInterrupt\n"
        "import tasks.command_line\n"
        "tasks.command_line.start_server = stop\n"
        "raise SystemExit(f.main(['--name', 'mine', '--runs', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", f"import sys\n{code}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 130
    assert "interrupted; the same command goes on in" in done.stderr and "mine" in done.stderr
