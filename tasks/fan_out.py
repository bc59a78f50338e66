"""Before a stage runs, several processes do what it has to do, through Prefect's Dask runner.

The helpers fill the stage's progress folder (`slimtts STAGE --help-out`); the stage finds the work done and puts it
together, as it does after an interruption. So DVC sees one command, and the result is that of one process. A helper
that dies is started again; what no helper finished, the stage does itself.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from slimtts.commands.stage import SHARED_STAGES
from slimtts.errors import InvalidInputError
from tasks.process_group import run_in_group
from tasks.stage_runner import BAD_INPUT_EXIT_CODE, Logger, StageError, stage_environment, stale_stages

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner

WORKERS = "SLIMTTS_WORKERS"  # processes a stage; not a parameter, because it changes no result
SCHEDULER = "SLIMTTS_DASK_SCHEDULER"  # of a Dask cluster whose machines share the workspace's file system


def fan_out(stage: str, workspace: Path, timeout_s: float, logger: Logger) -> int:
    """Runs the helpers that SLIMTTS_WORKERS asks for, when the stage is stale; how many of them finished.

    Raises:
        InvalidInputError: SLIMTTS_WORKERS is not a number of processes.
    """
    workers = wanted_workers()
    if workers < 2 or stage not in SHARED_STAGES or not stale_stages(workspace, stage):
        return 0
    logger.info("%s: %d processes share the work", stage, workers)
    threads = None if SCHEDULER in os.environ else max(1, (os.cpu_count() or 1) // workers)
    with dask_runner(workers) as runner:
        asked = [{"stage": stage, "workspace": workspace, "threads": threads, "number": n} for n in range(workers)]
        futures = [runner.submit(help_out, one | {"timeout_s": timeout_s}) for one in asked]
        for future in futures:
            future.wait()
        given_up = [future for future in futures if not future.state.is_completed()]
        for future in given_up:
            reason = " ".join(str(future.wrapped_future.exception() or future.state.message).split())
            logger.warning("%s: a helper gave up: %s; the stage does what is left", stage, reason)
    return workers - len(given_up)


def wanted_workers() -> int:
    """SLIMTTS_WORKERS, or 1."""
    text = os.environ.get(WORKERS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise InvalidInputError(WORKERS, repr(text), "a number of processes, 1 or more", "correct it or unset it")
    return int(text)


def dask_runner(workers: int) -> DaskTaskRunner:
    """A cluster on this machine's loopback for as long as the work lasts, or the one at SLIMTTS_DASK_SCHEDULER."""
    from prefect.client.orchestration import get_client
    from prefect_dask import DaskTaskRunner

    address = os.environ.get(SCHEDULER)
    if address:
        return DaskTaskRunner(address=address)
    logging.getLogger("distributed").setLevel(logging.WARNING)  # it tells of every connection
    with get_client(sync_client=True) as client:
        server = str(client.api_url)  # without it each worker would start a Prefect server of its own
    local = {
        "n_workers": workers, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0", "env": {"PREFECT_API_URL": server},
    }  # fmt: skip
    return DaskTaskRunner(cluster_kwargs=local)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=1, task_run_name="{stage}-helper-{number}")
def help_out(stage: str, workspace: Path, threads: int | None, number: int, timeout_s: float) -> None:
    """One helper, in a process group of its own; a killed one is started again.

    Raises:
        StageError: it did not finish. Bad input is left to the stage, which meets it too.
    """
    logger = get_run_logger()
    command = [sys.executable, "-m", "slimtts.cli", stage, "--help-out"]
    command += ["--threads", str(threads)] if threads else []
    title = f"{stage} helper {number}"
    code = run_in_group(
        command, workspace, stage_environment(), timeout_s, lambda line: logger.info("%s | %s", title, line)
    )
    if code not in (0, BAD_INPUT_EXIT_CODE):
        raise StageError(title, f"ended with exit code {code}", code)
