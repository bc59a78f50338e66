"""Returns production to a version that was there before.

slimtts rollback --reason "clicks in the audio of version 4"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from slimtts.console import exit_code_of
from slimtts.promotion_history import event_line
from tasks.command_line import run_command
from tasks.promotion import Promotions, Request
from tasks.service_checks import check_tracking
from tasks.tracking import mlflow_client, tracking_uri
from tasks.workspace import CHECKOUT, compose_params

RUNS = CHECKOUT / "runs"


@flow(name="roll-back-model")
def roll_back_model(reason: str, to: str = "", model: str = "", runs_root: Path = RUNS) -> str:
    """Moves @production to the version before the present one, or to `to`.

    Args:
        reason: kept in the history.
        to: a version that was in production before; "" is the one that the present one replaced, "none" is nothing.
        model: name in the registry, if it is not that of params.yaml.
        runs_root: where runs live.

    Returns:
        The version that is in production afterwards ("" for none).
    """
    event = _promotions(model, runs_root).roll_back(to, Request.now(reason))
    get_run_logger().info("%s", event_line(event))
    return event.version


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.roll_back_model", description=__doc__.splitlines()[0])
    parser.add_argument("--reason", required=True, help="kept in the history")
    parser.add_argument("--to", default="", metavar="VERSION", help="default: the one before; none: nothing is served")
    parser.add_argument("--model", default="", help="name in the registry (default: as in params.yaml)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    options = parser.parse_args(arguments)
    next_step = "`slimtts history` shows what was decided"
    return run_command(lambda: _roll_back(options), next_step, options.runs, lambda: _check(options))


def _check(options: argparse.Namespace) -> None:
    """Before a server starts for nothing."""
    check_tracking(options.runs)
    _promotions(options.model, options.runs).check_roll_back(options.to)


def _roll_back(options: argparse.Namespace) -> int:
    production = roll_back_model(options.reason, options.to, options.model, options.runs)
    print(f"in production: version {production or 'none'}")
    return 0


def _promotions(model: str, runs_root: Path) -> Promotions:
    name = model or compose_params("full", ()).register_model.model_name
    return Promotions(mlflow_client(tracking_uri(runs_root)), runs_root, name)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
