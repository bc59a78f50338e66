"""Decides about a registered version by today's gate: promotes it, refuses it, or asks a person first.

slimtts promote 3 --reason "quieter in long sentences"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from slimtts.console import exit_code_of
from slimtts.promotion_history import event_line, valid_reason
from tasks.approval import ask
from tasks.command_line import run_command
from tasks.evidence import Evidence, model_version
from tasks.promotion import Promotions, Request
from tasks.service_checks import check_tracking
from tasks.tracking import mlflow_client, tracking_uri
from tasks.workspace import CHECKOUT, compose_params

RUNS = CHECKOUT / "runs"


@flow(name="promote-model", flow_run_name="promote version {version}")
def promote_model(
    version: str,
    reason: str = "",
    accept_new_basis: str = "",
    model: str = "",
    overrides: Sequence[str] = (),
    runs_root: Path = RUNS,
) -> str:
    """Judges `version` by today's gate against what is in production; moves @production if it passes.

    Args:
        version: number in the registry.
        reason: kept in the history.
        accept_new_basis: why other sentences, another recogniser or another teacher than production's are right.
        model: name in the registry, if it is not that of params.yaml.
        overrides: changes to params.yaml, as "register_model.min_speedup=1.5".
        runs_root: where runs live.

    Returns:
        The version that is in production afterwards ("" for none).
    """
    named = [f"register_model.model_name={model}"] if model else []
    gate = compose_params("full", [*overrides, *named]).register_model
    client, request = mlflow_client(tracking_uri(runs_root)), Request.now(reason, accept_new_basis)
    promotions = Promotions(client, runs_root, gate.model_name)
    evidence = Evidence.of_version(client, gate.model_name, version)
    event = promotions.decide(version, evidence, gate, request)
    get_run_logger().info("%s", event_line(event))
    if event.action == "proposed":
        answer = ask(event)
        if answer is None:
            promotions.settle()
        else:
            words = valid_reason("; ".join(filter(None, [request.reason, answer.reason.strip()])), "reason")
            answered = replace(request, approver=valid_reason(answer.approver, "approver"), reason=words)
            if answer.approve:
                promotions.decide(version, evidence, gate, answered)
            else:
                promotions.decline(version, answered)
        latest = [event for event in promotions.log.read().events if event.version == version][-1]
        get_run_logger().info("%s", event_line(latest))
    return promotions.log.read().production or ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 when the version is in production afterwards, 1 when not, 2 for what only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote_model", description=__doc__.splitlines()[0])
    parser.add_argument("version", help="number in the registry")
    parser.add_argument("--reason", default="", help="kept in the history")
    parser.add_argument("--accept-new-basis", default="", metavar="WHY", help="other test set or teacher on purpose")
    parser.add_argument("--model", default="", help="name in the registry (default: as in params.yaml)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    options = parser.parse_args(arguments)
    next_step = "`slimtts history` shows what was decided"
    return run_command(lambda: _promote(options), next_step, options.runs, lambda: _check(options))


def _check(options: argparse.Namespace) -> None:
    """Before a server starts for nothing."""
    check_tracking(options.runs)
    named = [f"register_model.model_name={options.model}"] if options.model else []
    gate = compose_params("full", [*options.overrides, *named]).register_model
    model_version(mlflow_client(tracking_uri(options.runs)), gate.model_name, options.version)


def _promote(options: argparse.Namespace) -> int:
    production = promote_model(
        options.version, options.reason, options.accept_new_basis, options.model, options.overrides, options.runs
    )
    print(f"in production: version {production or 'none'}")
    return 0 if production == options.version else 1


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
