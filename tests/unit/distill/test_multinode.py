"""The two-node and Kubernetes forms: the variables that the code reads, one port, and a machine that keeps joining."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from slimtts.distill import ranks

MULTINODE = Path(__file__).parents[3] / "infra" / "multinode"
PYTHON = """#!/bin/sh
case "$1" in
-c) cat "$3" ;;
-m) echo "$SLIMTTS_SUPERVISED $*" >> {log}; test "$(wc -l < {log})" -ge 3 ;;
esac
"""


def join(tmp_path, processes, **variables):
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(PYTHON.format(log=log))
    python.chmod(0o755)
    if processes:
        (tmp_path / "params.yaml").write_text(processes)
    environment = {
        "PATH": os.environ["PATH"], "PYTHON": str(python), "SLIMTTS_JOIN_PAUSE_S": "0", ranks.NODES: "2",
        ranks.ADDRESS: "10.0.0.1:29500", **variables,
    }  # fmt: skip
    done = subprocess.run(
        [MULTINODE / "join.sh", tmp_path], env=environment, capture_output=True, text=True, timeout=60
    )
    return done, log.read_text().splitlines() if log.exists() else []


def test_a_machine_joins_again_until_the_training_is_done(tmp_path):
    done, started = join(tmp_path, "8", SLIMTTS_THREADS="3")
    assert (done.returncode, len(started)) == (0, 3)
    assert len(set(started)) == 1 and "attempt 2 of 1000 is over" in done.stderr
    command = started[0]
    assert command.startswith("1 -m torch.distributed.run"), "the first machine's stage holds the lock"
    for part in (
        "--nnodes 2", "--nproc-per-node 4", "--max-restarts 0", "--rdzv-endpoint 10.0.0.1:29500",
        f"distill_student --workspace {tmp_path} --threads 3",
    ):  # fmt: skip
        assert part in command


def test_a_machine_waits_for_the_run_to_exist_and_gives_up_in_the_end(tmp_path):
    done, started = join(tmp_path, "", SLIMTTS_JOIN_ATTEMPTS="2")
    assert (done.returncode, started) == (1, [])
    assert "attempt 2 of 2 is over" in done.stderr


def test_both_sides_start_torchrun_alike(tmp_path, monkeypatch):
    _, started = join(tmp_path, "8")
    monkeypatch.setenv(ranks.ADDRESS, "10.0.0.1:29500")
    ours = ranks.torchrun(["-m", "slimtts.cli", "distill_student"], 8, 2)
    theirs = started[0].split()
    for option in ("--nnodes", "--nproc-per-node", "--max-restarts", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint"):
        assert ours[ours.index(option) + 1] == theirs[theirs.index(option) + 1]


@pytest.mark.parametrize("missing", [ranks.NODES, ranks.ADDRESS])
def test_a_variable_that_is_missing_is_named(tmp_path, missing):
    done, started = join(tmp_path, "8", **{missing: ""})
    assert (done.returncode != 0, started) == (True, [])
    assert missing in done.stderr


def test_the_kubernetes_form_hangs_together():
    service, policy, job = yaml.safe_load_all((MULTINODE / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    name = service["metadata"]["name"]
    assert pod["spec"]["subdomain"] == name == job["metadata"]["name"]
    assert environment[ranks.ADDRESS] == f"{name}-0.{name}:29500"
    assert environment[ranks.NODES] == str(spec["completions"]) == str(spec["parallelism"])
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    (script,) = container["args"]
    assert "distill_student.processes=2" in script and "infra/multinode/join.sh /opt/slimtts/runs/two-nodes" in script
    assert "--name two-nodes" in script
