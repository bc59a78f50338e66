"""Makes the bundled teacher again: grammar -> flite speech -> codec -> recogniser -> language model -> bundle -> card.

python -m flows.pretrain_nano --work build/nano

Needs flite. Hours on two processor cores; each step goes on where an interrupted run stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.command_line import run_command
from tasks.process_group import run_in_group
from tasks.stage_runner import StageError, stage_environment
from tasks.workspace import CHECKOUT

STEP_TIMEOUT_S = 12 * 3600.0


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5, task_run_name="{step}")
def run_step(step: str, work: Path, sizes: Sequence[str]) -> None:
    """One step of the recipe in a process of its own."""
    command = [sys.executable, "-m", "slimtts.nano.recipe", step, "--work", str(work), *sizes]
    code = run_in_group(command, CHECKOUT, stage_environment(), STEP_TIMEOUT_S, get_run_logger().info)
    if code:
        raise StageError(step, f"exit code {code}; its last lines are above", code)


@flow(name="pretrain-nano")
def pretrain_nano(work: Path = CHECKOUT / "build" / "nano", sizes: Sequence[str] = ()) -> None:
    """Speech, codec and codes; then the recogniser and the language model; then bundle and card."""
    for step in ("speak", "codec", "encode", "asr", "lm", "bundle", "card"):
        run_step(step, work, sizes)


def main() -> int:
    """Exit code: 0 done, 1 a step failed, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.pretrain_nano", description=__doc__)
    parser.add_argument("--work", type=Path, default=CHECKOUT / "build" / "nano")
    options, rest = parser.parse_known_args()

    def pretrain() -> int:
        pretrain_nano(options.work, rest)
        return 0

    return run_command(pretrain, "the same command goes on with the step that was cut")


if __name__ == "__main__":
    sys.exit(main())
