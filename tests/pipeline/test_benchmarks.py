"""Every benchmark in its quick form: it ends, and prints what it compared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
