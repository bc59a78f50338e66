"""All rows that need a GPU, by one command in at most ten minutes: every speed script at true size, one by one.

python -m benchmarks.gpu_tables --out build/gpu               # on a machine with CUDA
python -m benchmarks.gpu_tables --out build/gpu --dry-run     # only prints what would run
python -m benchmarks.gpu_tables --out build/gpu --device cpu --quick

Each script is a process of its own with a time limit; one that fails, hangs or is missing leaves the others alone. What
they print and write comes together in gpu_tables.md and gpu_tables.json, rewritten after every step, so that a run that
is cut short has told what it knew. Exit code 1 when a step failed. Needs nothing but what the scripts themselves need.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEPT_CHARACTERS = 40_000  # of what a step prints
LEAST_STEP_S = 10  # with less time left than this, a step is not begun


@dataclass(frozen=True)
class Step:
    """One script: its module, what it gets on the device, what it gets with --quick, and seconds at most."""

    name: str
    module: str
    full: tuple[str, ...]
    quick: tuple[str, ...]
    limit_s: int
    written: str | None = None  # below the folder that `--out` names; "" is the folder, None a script without --out

    def command(self, device: str, quick: bool, folder: Path) -> list[str]:
        """What is run."""
        where = [] if self.written is None else ["--out", str(folder / self.written)]
        chosen = self.quick if quick else self.full
        return [sys.executable, "-m", self.module, "--device", device, *chosen, *where]

    @property
    def script(self) -> Path:
        return ROOT.joinpath(*self.module.split(".")).with_suffix(".py")


@dataclass
class Outcome:
    """What became of a step: ok, failed (with the exit code), timed out, missing, or no time left."""

    name: str
    command: str
    status: str
    seconds: float
    printed: str = ""
    written: dict[str, Any] = field(default_factory=dict)


STEPS = (
    Step(
        "Decoder",
        "benchmarks.decoding_speed",
        full=("--model", "llasa-1b", "--batches", "1", "16", "64", "--sentences", "4"),
        quick=("--quick",),
        limit_s=160,
        written="decoding.json",
    ),
    Step(
        "Speculative decoding",
        "benchmarks.speculative_speed",
        full=("--model", "llasa-1b", "--rules", "exact", "--lengths", "2", "3", "5"),
        quick=("--quick",),
        limit_s=120,
        written="speculative.json",
    ),
    Step(
        "Distillation engine",
        "benchmarks.distillation_speed",
        full=("--model", "llasa-1b", "--tokens", "8192", "--rounds", "2"),
        quick=("--quick",),
        limit_s=140,
    ),
    Step(
        "Scoring and evaluation",
        "benchmarks.scoring_speed",
        full=("--model", "llasa-1b", "--max-new-tokens", "64", "--rounds", "1"),
        quick=("--quick",),
        limit_s=90,
        written="scoring.json",
    ),
    Step(
        "Memory",
        "benchmarks.memory_table",
        full=("--model", "llasa-1b", "--measure", "llasa-1b"),
        quick=("--quick",),
        limit_s=60,
        written="",
    ),
)


def run_step(step: Step, device: str, quick: bool, limit_s: float) -> Outcome:
    """Runs a step; whatever it started ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        written, printed_path, told_path = (Path(folder) / name for name in ("written", "printed.txt", "told.txt"))
        written.mkdir()
        command = step.command(device, quick, written)
        shown = shlex.join(["python", *command[1:]])
        if not step.script.is_file():
            return Outcome(step.name, shown, "missing", 0.0)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
        started = time.monotonic()
        with printed_path.open("wb") as printed_to, told_path.open("wb") as told_to:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=printed_to,
                stderr=told_to,
                start_new_session=True,
            )
            try:
                code = process.wait(limit_s)
                status = "ok" if code == 0 else f"failed with {code}"
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit_s:.0f} s"
            finally:
                end_group(process)
        seconds = time.monotonic() - started
        # Progress bars and warnings matter only where something went wrong.
        told = (printed_path, told_path) if status != "ok" else (printed_path,)
        printed = "".join(path.read_text(errors="replace") for path in told)
        return Outcome(step.name, shown, status, seconds, printed[-KEPT_CHARACTERS:], read_all_json(written))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a step's processes, also those that outlive the first one."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_all_json(folder: Path) -> dict[str, Any]:
    """What a step wrote, by the name of the file, without those that it could not finish."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        with suppress(json.JSONDecodeError):
            found[path.stem] = json.loads(path.read_text())
    return found


def run_all(
    steps: Sequence[Step], device: str, quick: bool, minutes: float, tell: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Every step with its own limit, within the time of the whole; `tell` hears of all outcomes after each."""
    deadline, outcomes = time.monotonic() + 60 * minutes, []
    for step in steps:
        left = deadline - time.monotonic()
        if left < LEAST_STEP_S:
            outcomes.append(Outcome(step.name, step.module, "no time left", 0.0))
        else:
            print(f"{step.name}: at most {min(step.limit_s, left):.0f} s", flush=True)
            outcomes.append(run_step(step, device, quick, min(step.limit_s, left)))
        print(f"{step.name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s", flush=True)
        tell(outcomes)
    return outcomes


def describe() -> dict[str, str]:
    """The machine and the versions that speed depends on."""
    found = {"date": str(date.today()), "python": platform.python_version(), "processor": platform.processor()}
    for package in ("torch", "transformers", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.SubprocessError):
        found["gpu"] = "none"
    return found


def markdown(machine: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """A section for each step: its command, its tables, and all that it printed where it failed."""
    lines = ["# GPU tables", "", ", ".join(f"{key} {value}" for key, value in machine.items())]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}: {outcome.status}, {outcome.seconds:.0f} s", "", f"`{outcome.command}`", ""]
        lines += outcome.printed.splitlines() if outcome.status == "ok" else [*fenced(outcome.printed)]
    return "\n".join(lines) + "\n"


def fenced(printed: str) -> list[str]:
    return ["~~~", *printed.splitlines(), "~~~"] if printed else []


def write_whole(path: Path, text: str) -> None:
    """Under another name first: a reader never finds half of it."""
    aside = path.with_suffix(path.suffix + ".part")
    aside.write_text(text)
    aside.replace(path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [step.module.rpartition(".")[2] for step in STEPS]
    out = os.environ.get("OUT")
    parser.add_argument("--out", type=Path, default=out and Path(out), required=out is None, help="folder; else $OUT")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="some of the scripts")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything together")
    parser.add_argument("--quick", action="store_true", help="the smoke form of every script, on nano")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    steps = [step for step in STEPS if step.module.rpartition(".")[2] in options.only]
    if options.dry_run:
        for step in steps:
            there = "" if step.script.is_file() else " (missing)"
            command = shlex.join(["python", *step.command(options.device, options.quick, Path("OUT"))[1:]])
            print(f"{step.limit_s:4d} s  {command}{there}")
        print(f"{sum(step.limit_s for step in steps):4d} s  of at most {60 * options.minutes:.0f}")
        return 0
    machine = describe()
    options.out.mkdir(parents=True, exist_ok=True)

    def tell(outcomes: list[Outcome]) -> None:
        found = {"machine": machine, "steps": [asdict(outcome) for outcome in outcomes]}
        write_whole(options.out / "gpu_tables.json", json.dumps(found, indent=1) + "\n")
        write_whole(options.out / "gpu_tables.md", markdown(machine, outcomes))

    outcomes = run_all(steps, options.device, options.quick, options.minutes, tell)
    return int(any(outcome.status != "ok" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
