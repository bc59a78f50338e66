"""Everything that a GPU must show, in two calls that fit 15 minutes: does each path run, then how fast is it.

python -m benchmarks.gpu.kit smoke --out build/gpu      # at most 4 minutes: tests/gpu, and what single parts cost
python -m benchmarks.gpu.kit tables --out build/gpu     # at most 8 minutes: the tables, the most valuable first
python -m benchmarks.gpu.kit tables --out build/gpu --dry-run                       # only prints what would run
python -m benchmarks.gpu.kit smoke tables --out build/gpu --device cpu --quick      # on any machine

Each step is a process of its own with a time limit; one that fails, hangs or is missing leaves the others alone. What
they print and write comes together in results.md and results.json, rewritten after every step, so that a run that is
cut short has told what it knew. Exit code 1 when a step failed. docs/GPU.md says what travels to such a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
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

ROOT = Path(__file__).parent.parent.parent
KEPT_CHARACTERS = 40_000  # of what a step prints
LEAST_STEP_S = 10  # with less time left than this, a step is not begun
MINUTES = {"smoke": 4.0, "tables": 8.0}
SIZED = ("--model", "llasa-1b")


@dataclass(frozen=True)
class Step:
    """One program: its module, what it gets on the device, what it gets with --quick, and seconds at most."""

    name: str
    module: str
    full: tuple[str, ...]
    quick: tuple[str, ...]
    limit_s: int
    written: str | None = None  # below the folder that `--out` names; "" is the folder, None a program without --out

    def command(self, device: str, quick: bool, folder: Path) -> list[str]:
        """What is run."""
        where = [] if self.written is None else ["--out", str(folder / self.written)]
        on = [] if self.module == "pytest" else ["--device", device]  # tests learn it from the environment
        chosen = self.quick if quick else self.full
        return [sys.executable, "-m", self.module, *on, *chosen, *where]


@dataclass
class Outcome:
    """What became of a step: ok, failed (with the exit code), stopped, or no time left."""

    name: str
    command: str
    status: str
    seconds: float
    printed: str = ""
    written: dict[str, Any] = field(default_factory=dict)


TESTS = ("-p", "no:cacheprovider", "-m", "gpu", "-q", "tests/gpu", "--durations", "8")
STEPS = {
    "smoke": (
        Step("tests", "pytest", TESTS, TESTS, limit_s=160),
        Step("probe", "benchmarks.gpu.probe", (), ("--tiny",), limit_s=80, written="probe.json"),
    ),
    "tables": (
        Step(
            "distillation",
            "benchmarks.distillation_speed",
            full=(*SIZED, "--tokens", "4096", "--rounds", "1", "--only", "plain, fp32", "plain, bf16", "TRL GKD loss",
                  "Liger fused JSD", "ours", "ours, packed", "ours, activation_checkpointing"),
            quick=("--quick",),
            limit_s=150,
        ),
        Step(
            "decoder",
            "benchmarks.decoding_speed",
            full=(*SIZED, "--batches", "1", "16", "64", "--rounds", "2"),
            quick=("--quick",),
            limit_s=130,
            written="decoding.json",
        ),
        Step(
            "distillation at 16,384 tokens",
            "benchmarks.distillation_speed",
            full=(*SIZED, "--tokens", "16384", "--rounds", "1", "--only", "ours", "ours, packed"),
            quick=("--quick", "--tokens", "256"),
            limit_s=75,
        ),
        Step(
            "healing",
            "benchmarks.gpu.heal",
            full=("--steps", "1500", "--tokens", "4096", "--compare", "10"),
            quick=("--steps", "3", "--tokens", "512", "--compare", "2"),
            limit_s=110,
            written="",
        ),
        Step(
            "speculative decoding",
            "benchmarks.speculative_speed",
            full=(*SIZED, "--rules", "exact", "--lengths", "2", "3", "5", "--agreements", "0.0", "0.1", "1.0"),
            quick=("--quick",),
            limit_s=90,
            written="speculative.json",
        ),
        Step(
            "scoring",
            "benchmarks.scoring_speed",
            full=(*SIZED, "--max-new-tokens", "64", "--rounds", "1"),
            quick=("--quick",),
            limit_s=75,
            written="scoring.json",
        ),
        Step(
            "quantised layers",
            "benchmarks.quantized_speed",
            full=(*SIZED, "--layers", "2", "--rows", "1", "--compile"),
            quick=("--quick",),
            limit_s=90,
        ),
        Step(
            "memory",
            "benchmarks.memory_table",
            full=(*SIZED, "--measure", "llasa-1b"),
            quick=("--quick",),
            limit_s=60,
            written="",
        ),
    ),
}  # fmt: skip


def run_step(step: Step, device: str, quick: bool, limit_s: float, archives: Path) -> Outcome:
    """Runs a step; whatever it started ends with it. Archives (.tgz) that it wrote go to the folder `archives`."""
    with tempfile.TemporaryDirectory() as folder:
        written, printed_path, told_path = (Path(folder) / name for name in ("written", "printed.txt", "told.txt"))
        written.mkdir()
        command = step.command(device, quick, written)
        shown = shlex.join(["python", *command[1:]])
        # Behind what the caller brings: a lent machine has its missing packages in a folder of PYTHONPATH.
        brought = [folder for folder in (os.environ.get("PYTHONPATH"),) if folder]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT), *brought)),
            "SLIMTTS_TEST_DEVICE": device,
            "PYTHONUNBUFFERED": "1",  # a step that is stopped has told its rows
            "TQDM_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
        }
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
        for archive in written.rglob("*.tgz"):
            shutil.copy(archive, archives / archive.name)
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
    steps: Sequence[Step],
    device: str,
    quick: bool,
    minutes: float,
    archives: Path,
    tell: Callable[[list[Outcome]], None],
) -> list[Outcome]:
    """Every step with its own limit, within the time of the whole; `tell` hears of all outcomes after each."""
    deadline, outcomes = time.monotonic() + 60 * minutes, []
    for step in steps:
        left = deadline - time.monotonic()
        if left < LEAST_STEP_S:
            outcomes.append(Outcome(step.name, step.module, "no time left", 0.0))
        else:
            print(f"{step.name}: at most {min(step.limit_s, left):.0f} s", flush=True)
            outcomes.append(run_step(step, device, quick, min(step.limit_s, left), archives))
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
    names = [step.name for steps in STEPS.values() for step in steps]
    out = os.environ.get("OUT")
    parser.add_argument("parts", choices=STEPS, nargs="+")
    parser.add_argument("--out", type=Path, default=out and Path(out), required=out is None, help="folder; else $OUT")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", choices=names, nargs="+", default=names, help="some of the steps")
    parser.add_argument("--minutes", type=float, help="for everything together; default 4 for smoke, 8 for tables")
    parser.add_argument("--quick", action="store_true", help="the smoke form of every step, on nano")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    steps = [step for part in options.parts for step in STEPS[part] if step.name in options.only]
    minutes = options.minutes or sum(MINUTES[part] for part in options.parts)
    if options.dry_run:
        for step in steps:
            command = shlex.join(["python", *step.command(options.device, options.quick, Path("OUT"))[1:]])
            print(f"{step.limit_s:4d} s  {command}")
        print(f"{sum(step.limit_s for step in steps):4d} s  of at most {60 * minutes:.0f}")
        return 0
    machine = describe()
    options.out.mkdir(parents=True, exist_ok=True)

    def tell(outcomes: list[Outcome]) -> None:
        results = {"machine": machine, "steps": [asdict(outcome) for outcome in outcomes]}
        write_whole(options.out / "results.json", json.dumps(results, indent=1) + "\n")
        write_whole(options.out / "results.md", markdown(machine, outcomes))

    outcomes = run_all(steps, options.device, options.quick, minutes, options.out, tell)
    return int(any(outcome.status != "ok" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
