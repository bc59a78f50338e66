"""Every benchmark in its quick form: it ends, and prints what it compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.kit import STEPS

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "words",
    [
        ["decoding_speed", "--quick"],
        ["speculative_speed", "--quick"],
        ["scoring_speed", "--quick"],
        ["quantized_speed", "--quick", "--model", "nano"],
        ["memory_table", "--quick"],
        ["distillation_speed", "--quick"],
        ["scaling", "--quick", "--only", "pruning"],
    ],
    ids=lambda words: words[0],
)
def test_a_benchmark_prints_its_table(words, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    to_files = {"scaling": ["--out", str(tmp_path / "out.json"), "--image", str(tmp_path / "out.png")]}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:], *to_files.get(words[0], [])],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("|") > 10, "a table"


def test_two_processes_are_timed_against_one(tmp_path):
    from tests.flows.small_run import small_run

    workspace = small_run(tmp_path)
    command = ["benchmarks.distributed_training", "--workspace", str(workspace.root), "--steps", "2", "--tokens", "256"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tokens" in done.stdout


def test_the_gpu_kit_runs_whole_in_its_quick_form_without_a_gpu(tmp_path):
    """What must work at the first try on a lent machine: every step of both parts."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.kit", "smoke", "tables", "--device", "cpu", "--quick", "--minutes", "20",
         "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=1500, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    steps = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert {step["name"]: step["status"] for step in steps} == {step["name"]: "ok" for step in steps}
    assert len(steps) == sum(map(len, STEPS.values()))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "student.tgz").is_file()
