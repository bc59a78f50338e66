"""A person's word before a version goes to production, asked for in Prefect's UI.

A flow run of its own waits, not the compression: nothing else is held meanwhile. Run by a worker it is suspended, so
that no process waits and a restart of the machine loses nothing; run from a terminal it pauses.
"""

from __future__ import annotations

import itertools
import math
import os
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml
from prefect.input import RunInput
from prefect.logging import get_run_logger
from pydantic import Field, ValidationError

from slimtts.errors import InvalidInputError
from slimtts.params import RegisterModelParams
from slimtts.printable import printable
from slimtts.promotion_history import PromotionEvent, open_proposal
from tasks.promotion import Promotions
from tasks.team_gate import team_gate

DEPLOYMENT = "promote-model/promote"
POLL_S = 2


class Approval(RunInput):
    """The form that the UI shows; the server refuses it until it is filled in."""

    approve: bool = Field(description="move @production to this version")
    reason: str = Field(pattern=r"\S", max_length=200, description="kept in the history")
    approver: str = Field(pattern=r"\S", max_length=100, description="your name")


def ask(proposal: PromotionEvent) -> Approval | None:
    """The answer of a person to an open question; None when nobody answers in time.

    Works inside a flow, which must hold no lock: in a deployment it ends here and starts again with the answer.

    Raises:
        InvalidInputError: there is no server whose UI a person could see.
    """
    from prefect.context import FlowRunContext
    from prefect.exceptions import FlowPauseTimeout
    from prefect.flow_runs import pause_flow_run, suspend_flow_run
    from prefect.settings import get_current_settings

    settings, context = get_current_settings(), FlowRunContext.get()
    if settings.api.url is None or context is None or context.flow_run is None:
        raise InvalidInputError(
            "register_model.approval", "required, without a Prefect server", "a server whose UI people see",
            "start one (`make ui`) and set PREFECT_API_URL, or set approval to none",
        )  # fmt: skip
    wait = suspend_flow_run if context.flow_run.deployment_id else partial(pause_flow_run, poll_interval=POLL_S)
    get_run_logger().info("waits for a person: %s/runs/flow-run/%s", settings.ui_url, context.flow_run.id)
    form = Approval.with_initial_data(description=_question(proposal))
    for attempt in itertools.count(1):
        remaining_s = (proposal.expires_at - datetime.now(UTC)).total_seconds() if proposal.expires_at else 0
        try:
            # A key that was answered gives its answer, also in a new process; one that never was fires only once.
            return wait(wait_for_input=form, timeout=max(1, math.ceil(remaining_s)), key=f"approval-{attempt}")
        except ValidationError:
            get_run_logger().warning("resumed without a complete answer: asks again")
        except FlowPauseTimeout:
            return None
    return None


def request_approval(promotions: Promotions, version: str, gate: RegisterModelParams) -> str:
    """Starts the flow run that asks about a proposed version, once for each proposal; gives what to tell people."""
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    asked = open_proposal(promotions.log.read().events, version)
    if asked is None:
        return ""
    team = team_gate().model_dump()  # what the run tightened goes along; the rest is asked for where it is decided
    own = {knob: value for knob, value in gate.model_dump().items() if value != team[knob]}
    settings = [f"register_model.{knob}={_as_yaml(value)}" for knob, value in own.items()]
    parameters: dict[str, Any] = {"version": version, "overrides": settings}
    if "MLFLOW_TRACKING_URI" not in os.environ:  # then the registry lies below the runs
        parameters["runs_root"] = str(promotions.runs_root)
    try:
        started = run_deployment(
            DEPLOYMENT, parameters=parameters, timeout=0, as_subflow=False,
            idempotency_key=f"{promotions.model_name} {version} {asked.recorded_at.isoformat()}",
        )  # fmt: skip
    except ObjectNotFound:
        return f"version {version} waits for a person; no deployment {DEPLOYMENT}, so: slimtts promote {version}"
    return f"version {version} waits for a person, in flow run {started.name} ({started.id})"


def _question(proposal: PromotionEvent) -> str:
    reasons = "\n".join(f"- {printable(reason)}" for reason in proposal.reasons)
    return (
        f"**{proposal.model_name} version {proposal.version}** to production, in place of version "
        f"{proposal.former_version or 'none'}? The gate says {proposal.decision}:\n\n{reasons}"
    )


def _as_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value)).splitlines()[0]
