"""Flows of toy stages for a real worker. Hearts beat every 2 s, so that a death is noticed in seconds."""

import os
import signal
from pathlib import Path

from prefect import flow, flow_engine
from prefect.logging import get_run_logger

from tasks.flow_parameters import fill_name, filled_name
from tasks.stage_runner import run_stage
from tasks.workspace import claimed_workspace

flow_engine.MINIMUM_HEARTBEAT_INTERVAL = 2  # the setting allows 30 at least
flow_engine.BaseFlowRunEngine.heartbeat_seconds = 2


@flow(name="toy-stage")
def one_stage(stage: str, workspace: Path):
    run_stage(stage, workspace, 300, get_run_logger())


@flow(name="toy", flow_run_name=filled_name)
def toy_flow(name: str, runs_root: Path, checkout: Path):
    """Flows within a flow, as in a sweep: one that has ended and one under way when the process dies."""
    with claimed_workspace(fill_name(name), "demo", [], runs_root, checkout) as workspace:
        for stage in ("subset_data", "score_layers"):
            state = one_stage(stage, workspace, return_state=True)
            if not state.is_completed():
                raise RuntimeError(f"{stage}: {state}")


@flow(name="doomed")
def doomed_flow():
    os.kill(os.getpid(), signal.SIGKILL)
