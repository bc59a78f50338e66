"""The command that gathers all GPU results: steps alone, limits kept, results kept at once."""

import json
import sys

import pytest
import torch

from benchmarks.gpu import kit
from benchmarks.gpu.kit import Step, run_all

SCRIPTS = {
    "fine": "import json, pathlib, sys\nprint('| a | b |')\nprint('hurry', file=sys.stderr)\n"
    "pathlib.Path(sys.argv[-1]).write_text(json.dumps({'device': sys.argv[2]}))",
    "broken": "import sys\nprint('almost')\nprint('no such thing', file=sys.stderr)\nraise SystemExit(3)",
    "endless": "import subprocess, sys, time\nprint('begun', flush=True)\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)",
}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    monkeypatch.setattr(kit, "ROOT", tmp_path)
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
    outcomes = run_all(
        steps, "cpu", quick=False, minutes=5, archives=tmp_path, tell=lambda so_far: told.append(len(so_far))
    )
    assert [o.status for o in outcomes] == ["failed with 3", "stopped after 2 s", "failed with 1", "ok"]
    assert told == [1, 2, 3, 4]
    assert "No module named" in outcomes[2].printed
    assert outcomes[0].printed == "almost\nno such thing\n"
    assert outcomes[1].printed == "begun\n"
    assert outcomes[1].seconds < 30  # its child did not hold it up
    assert (outcomes[3].printed, outcomes[3].written) == ("| a | b |\n", {"fine": {"device": "cpu"}})
    page = kit.markdown({"gpu": "none"}, outcomes)
    assert "## fine: ok" in page and "| a | b |" in page and "~~~\nalmost\nno such thing\n~~~" in page


def test_without_time_left_a_step_is_named_and_not_begun(steps, tmp_path):
    outcomes = run_all(steps[3:], "cpu", quick=False, minutes=0.1, archives=tmp_path, tell=lambda so_far: None)
    assert [(o.name, o.status) for o in outcomes] == [("fine", "no time left")]


@pytest.mark.parametrize("part", kit.STEPS)
def test_the_plan_fits_into_its_time_and_runs_nothing(monkeypatch, capsys, tmp_path, part):
    monkeypatch.setattr(kit.subprocess, "Popen", lambda *a, **k: pytest.fail("a dry run starts nothing"))
    assert kit.main([part, "--dry-run", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(kit.STEPS[part]) + 1
    assert sum("--device cuda" in line or "pytest" in line for line in lines) == len(kit.STEPS[part])
    assert lines[-1].endswith(f"of at most {60 * kit.MINUTES[part]:.0f}")
    assert not (tmp_path / "out").exists()


def test_the_most_valuable_tables_fit_even_if_each_takes_its_limit():
    most_valuable = [step for step in kit.STEPS["tables"] if step.limit_s][:4]
    assert sum(step.limit_s for step in most_valuable) <= 60 * kit.MINUTES["tables"]


def test_what_the_caller_brings_is_found_behind_the_project(tmp_path, monkeypatch):
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "travelled.py").write_text("WHERE = 'wheels'\n")
    (tmp_path / "fine.py").write_text("import travelled\nprint(travelled.WHERE)\n")
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "brought"))
    outcome = kit.run_step(Step("fine", "fine", (), (), 60), "cpu", False, 60, tmp_path)
    assert (outcome.status, outcome.printed) == ("ok", "wheels\n")


def test_archives_come_home_whole(tmp_path, monkeypatch):
    (tmp_path / "fine.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.argv[-1], 'student.tgz').write_bytes(b'x')\n"
    )
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    archives = tmp_path / "out"
    archives.mkdir()
    kit.run_step(Step("fine", "fine", (), (), 60, ""), "cpu", False, 60, archives)
    assert (archives / "student.tgz").read_bytes() == b"x"


def test_both_forms_are_written_and_a_failure_is_an_exit_code(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(kit, "STEPS", {"tables": tuple(steps[:1] + steps[3:])})
    assert kit.main(["tables", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [step["status"] for step in results["steps"]] == ["failed with 3", "ok"]
    assert results["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert sys.executable not in results["steps"][1]["command"]
    assert kit.main(["tables", "--out", str(tmp_path / "out"), "--device", "cpu", "--only", "fine"]) == 0
