"""The table of speculative decoding at a tiny true size, and the command that gathers all GPU tables."""

import json
import sys

import pytest
import torch

from benchmarks import gpu_tables, speculative_speed, true_sizes
from benchmarks.gpu_tables import Step, run_all
from benchmarks.speculative_rows import foreseen_speedup
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.testing.tiny import tiny_config


@pytest.fixture
def tiny_size(monkeypatch):
    layout = SpeechTokenLayout(first_code_id=40, num_codes=20, end_id=60, pad_id=0)
    size = true_sizes.Size(tiny_config("llama", 4, 64, tied=True), layout, (0, 0), 1.0)
    monkeypatch.setitem(true_sizes.SIZES, "tiny", lambda: size)


def test_a_row_for_each_way_and_agreement(tiny_size, tmp_path, capsys):
    out, draft = tmp_path / "rows.json", "--draft /somewhere/student"
    speculative_speed.main(
        ["--model", "tiny", "--codes", "20", "--prompt-tokens", "8", "--agreements", "0", "1", "--rules", "exact",
         "--lengths", "3", "--out", str(out), *draft.split()]
    )  # fmt: skip
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert [(row["rule"], row["agreement"]) for row in rows] == [
        (rule, agreement) for agreement in (1.0, 0.0) for rule in ("plain", "draft alone", "exact")
    ]
    partly, wholly = rows[2], rows[5]
    assert wholly["acceptance"] > 0.9  # in bf16 both round differently
    assert partly["acceptance"] < wholly["acceptance"]
    assert wholly["codes_per_target_pass"] == pytest.approx(4, abs=0.7)
    assert rows[0]["speedup"] == 1
    assert set(result["costs"]["target_pass_ms"]) == {"1", "2", "3", "4", "6", "9"}
    assert "--out" not in result["command"] and "/somewhere" not in result["command"]
    printed = capsys.readouterr().out
    assert printed.count("| 0.8 | exact | 3 |") == 2


def test_the_speed_that_costs_foresee():
    assert foreseen_speedup(3.4, length=3, draft_share=0.5, block_cost=1.0) == pytest.approx(3.4 / 2.5)
    assert foreseen_speedup(1.0, length=0, draft_share=0.5, block_cost=1.0) == 1


SCRIPTS = {
    "fine": "import json, pathlib, sys\nprint('| a | b |')\nprint('hurry', file=sys.stderr)\n"
    "pathlib.Path(sys.argv[-1]).write_text(json.dumps({'device': sys.argv[2]}))",
    "broken": "import sys\nprint('almost')\nprint('no such thing', file=sys.stderr)\nraise SystemExit(3)",
    "endless": "import subprocess, sys, time\nprint('begun', flush=True)\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)",
}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tables, "ROOT", tmp_path)
    for name, script in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(script)
    return [
        Step("broken", "broken", (), (), 60),
        Step("endless", "endless", (), (), 2),
        Step("absent", "absent", (), (), 60),
        Step("fine", "fine", ("--big",), (), 60, "fine.json"),
    ]


def test_a_step_that_fails_hangs_or_is_missing_leaves_the_others_alone(steps, tmp_path):
    told = []
    outcomes = run_all(steps, "cpu", quick=False, minutes=5, tell=lambda so_far: told.append(len(so_far)))
    assert [o.status for o in outcomes] == ["failed with 3", "stopped after 2 s", "missing", "ok"]
    assert told == [1, 2, 3, 4]
    assert outcomes[0].printed == "almost\nno such thing\n"
    assert outcomes[1].printed == "begun\n"
    assert outcomes[1].seconds < 30  # its child did not hold it up
    assert (outcomes[3].printed, outcomes[3].written) == ("| a | b |\n", {"fine": {"device": "cpu"}})
    page = gpu_tables.markdown({"gpu": "none"}, outcomes)
    assert "## fine: ok" in page and "| a | b |" in page and "~~~\nalmost\nno such thing\n~~~" in page


def test_without_time_left_a_step_is_named_and_not_begun(steps):
    outcomes = run_all(steps[3:], "cpu", quick=False, minutes=0.1, tell=lambda so_far: None)
    assert [(o.name, o.status) for o in outcomes] == [("fine", "no time left")]


def test_the_plan_fits_into_its_time_and_runs_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_tables.subprocess, "Popen", lambda *a, **k: pytest.fail("a dry run starts nothing"))
    assert gpu_tables.main(["--dry-run", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(gpu_tables.STEPS) + 1
    assert all("--device cuda" in line for line in lines[:-1])
    assert sum(step.limit_s for step in gpu_tables.STEPS) <= 600
    assert not (tmp_path / "out").exists()


def test_both_forms_are_written_and_a_failure_is_an_exit_code(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tables, "STEPS", tuple(steps[:1] + steps[3:]))
    assert gpu_tables.main(["--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    found = json.loads((tmp_path / "out" / "gpu_tables.json").read_text())
    assert [step["status"] for step in found["steps"]] == ["failed with 3", "ok"]
    assert found["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert sys.executable not in found["steps"][1]["command"]
    assert gpu_tables.main(["--out", str(tmp_path / "out"), "--device", "cpu", "--only", "fine"]) == 0
