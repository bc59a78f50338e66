"""`slimtts doctor`: what is installed, cached, reachable, on which machine; and whether the demo can run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.errors import SlimttsError

if TYPE_CHECKING:
    from slimtts.doctor.finding import Finding

RUNS = Path("runs")


class NotReadyError(SlimttsError):
    """Something that the bundled demo needs is not there."""

    exit_code = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For people or programs."""
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs are to live (default: ./runs)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> None:
    """Prints what was found.

    Raises:
        NotReadyError: the bundled demo cannot run; exit code 1.
    """
    from slimtts.doctor.finding import as_json, as_text, blockers

    findings = look_around(options.runs)
    print(as_json(findings) if options.json else as_text(findings))
    missing = blockers(findings)
    if missing:
        names = ", ".join(finding.name for finding in missing)
        steps = dict.fromkeys(finding.next_step for finding in missing)
        raise NotReadyError(f"doctor: observed not ready for `make demo`: {names}; next: {'; '.join(steps)}")


def look_around(runs: Path) -> Sequence[Finding]:
    """Every finding, by topic."""
    from slimtts.doctor.machine import machine_findings
    from slimtts.doctor.models import model_findings
    from slimtts.doctor.packages import package_findings
    from slimtts.doctor.services import service_findings
    from slimtts.doctor.tools import tool_findings

    return [
        *package_findings(), *model_findings(), *service_findings(), *machine_findings(runs), *tool_findings(),
    ]  # fmt: skip
