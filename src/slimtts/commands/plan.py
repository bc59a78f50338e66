"""`slimtts plan`: what a run will do, how long, with how much memory and disk; nothing is started."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.printable import printable_lines
from slimtts.workspace import STAGES, Workspace

if TYPE_CHECKING:
    from slimtts.results import RunEstimate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run."""
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder of the run (default: here)")
    parser.add_argument("--params", type=Path, help="default: params.yaml of the workspace")
    parser.add_argument("--finished", default="", metavar="STAGE,STAGE", help="stages that will have nothing to do")
    parser.add_argument("--check", action="store_true", help="only say whether the run can start; measure nothing")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> None:
    """Measures a few units of each kind, and prints the plan."""
    from slimtts.errors import InvalidInputError
    from slimtts.params import load_params
    from slimtts.planning import estimate
    from slimtts.run_checks import check_run

    finished = [stage for stage in options.finished.split(",") if stage]
    unknown = sorted(set(finished) - set(STAGES))
    if unknown:
        raise InvalidInputError("--finished", ", ".join(unknown), ", ".join(STAGES), "correct it")
    params = load_params(options.params or Workspace(options.workspace).params)
    if options.check:
        check_run(params, options.workspace, finished)
        return
    found = estimate(params, options.workspace, finished)
    print(found.model_dump_json(indent=2, ensure_ascii=True) if options.json else printable_lines(plan_table(found)))


def plan_table(found: RunEstimate) -> str:
    """A line a stage, and what all of it needs."""
    lines = [
        f"{row.stage:<17}{'up to date' if row.stage in found.finished else duration(row.seconds):>11}  {row.work}"
        for row in found.stages
    ]
    total = f"{'in all':<17}{duration(found.seconds):>11}  on {found.machine}, as busy as it is now"
    needs = f"memory {found.peak_memory_gb:.1f} GB; disk {found.disk_gb:.1f} GB of {found.free_disk_gb:.0f} GB free"
    left_out = [f"not in these times: {'; '.join(found.unknown)}"] if found.unknown else []
    return "\n".join([*lines, total, needs, *left_out])


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
