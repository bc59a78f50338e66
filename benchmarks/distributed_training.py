"""The same distillation by one process and by two: losses side by side, and seconds a step.

python -m benchmarks.distributed_training --workspace runs/demo --steps 20 --tokens 2048

Runs the stage distill_student (student only, on the CPU, one thread a process) on a run's data and pruned model, in
scratch workspaces. Prints the largest relative difference of a step's loss from one process with the same optimiser.
Two processes with a thread each are compared with one process with one thread: that is how much they share the work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import yaml

from slimtts.results import DistillReport
from slimtts.stages.evaluate_student import describe_machine
from slimtts.workspace import Workspace

ADAMW = {"optimizer": "adamw", "learning_rate": 2e-4}
CASES = {
    "adamw, 1 process": ADAMW,
    "adamw, 1 process, 4 passes a step": ADAMW | {"micro_batches": 4},
    "adamw, 2 processes, ddp": ADAMW | {"processes": 2},
    "adamw, 2 processes, ddp, 2 passes a step": ADAMW | {"processes": 2, "micro_batches": 2},
    "adamw, 2 processes, fsdp": ADAMW | {"processes": 2, "parallel": "fsdp"},
    "muon, 1 process": {},
    "muon, 2 processes, ddp": {"processes": 2},
}
QUICK = ("muon, 1 process", "muon, 2 processes, ddp")


def trained(source, root, knobs):
    """(losses of every step, seconds a step) of the stage with `knobs`."""
    workspace = Workspace(root)
    root.mkdir()
    for folder in ("data", "pruned"):
        (root / folder).symlink_to((source.root / folder).resolve())
    params = yaml.safe_load(source.params.read_text())
    params["distill_student"] |= knobs
    workspace.params.write_text(yaml.safe_dump(params))
    threads = str(knobs.get("processes", 1))
    command = [sys.executable, "-m", "slimtts.cli", "distill_student", "--threads", threads]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    rows = [json.loads(line) for line in (workspace.student / "student.jsonl").read_text().splitlines()]
    report = DistillReport.read(workspace.student / "report.json").student
    return [row["loss"] for row in rows], report.wall_s / report.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2048, help="of all processes together")
    parser.add_argument("--quick", action="store_true", help="two steps of 256 tokens, one and two processes only")
    options = parser.parse_args()
    cases = CASES
    if options.quick:
        options.steps, options.tokens = 2, 256
        cases = {name: knobs for name, knobs in CASES.items() if name in QUICK}
    common = {"steps": options.steps, "tokens_per_step": options.tokens, "control": False, "device": "cpu"}
    alone = {}
    print(f"{date.today()}, {describe_machine(1)} a process; {options.steps} steps of {options.tokens} tokens")
    print("| training | first loss | last loss | largest difference | s a step |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, knobs) in enumerate(cases.items()):
            losses, step_s = trained(Workspace(options.workspace), Path(scratch) / str(number), common | knobs)
            reference = alone.setdefault(knobs.get("optimizer"), losses)
            off = max(abs(a / b - 1) for a, b in zip(losses, reference, strict=True))
            print(f"| {name} | {losses[0]:.6f} | {losses[-1]:.6f} | {off:.1e} | {step_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
