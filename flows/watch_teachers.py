"""A new version of a teacher, in a bucket or in the registry, starts a run; each version once.

python -m flows.watch_teachers --source s3://teachers/nano

On a schedule by infra/prefect.yaml. Needs a Prefect server with the deployment that it starts.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import State, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger
from prefect.variables import Variable
from pydantic import Field

from slimtts.console import exit_code_of
from slimtts.errors import InvalidInputError
from tasks.command_line import run_command
from tasks.flow_parameters import Override, Profile
from tasks.teacher_settings import teacher_overrides
from tasks.teacher_versions import ChangedMeanwhileError, TeacherVersion, fetch, newest_version
from tasks.workspace import CHECKOUT

RUNS = CHECKOUT / "runs"
STARTED = "compress-model/compress-model"
QUIET_MINUTES = 10.0

Source = Annotated[str, Field(pattern=r"^(s3://[^/]+(/.*)?|models:/[A-Za-z0-9._-]+@[A-Za-z0-9._-]+)$")]
Minutes = Annotated[float, Field(ge=0, le=1440)]


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A network that was away is tried again; a teacher that nobody knows, or one that is uploaded just now, is not."""
    return not isinstance(state.result(raise_on_failure=False), (InvalidInputError, ChangedMeanwhileError))


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=30, retry_condition_fn=worth_retrying)
def fetch_teacher(version: TeacherVersion, endpoint: str, runs_root: Path) -> Path:
    """The checkpoint in a folder of this machine; a download that was cut begins again."""
    return fetch(version, endpoint, runs_root)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=10, retry_condition_fn=worth_retrying)
def start_run(version: TeacherVersion, folder: Path, deployment: str, profile: str, overrides: Sequence[str]) -> str:
    """Id of the flow run; the server makes one for a version, however often it is asked."""
    parameters = {
        "name": version.name,
        "profile": profile,
        "overrides": [*teacher_overrides(folder, overrides), *overrides],
        "revision": "HEAD",
    }
    key = f"teacher {version.fingerprint}"
    started = run_deployment(deployment, parameters=parameters, timeout=0, idempotency_key=key, as_subflow=False)
    return str(started.id)


@flow(name="watch-teachers", flow_run_name="watch {source}")
def watch_teachers(
    source: Source,
    profile: Profile = "full",
    overrides: Sequence[Override] = (),
    marker: str = "",
    quiet_minutes: Minutes = QUIET_MINUTES,
    endpoint: str = "",
    deployment: str = STARTED,
    runs_root: Path = RUNS,
) -> str:
    """Starts a run for the newest complete teacher, unless it has had one; returns the flow run's id, or "".

    Args:
        source: s3://bucket/prefix below which checkpoints are uploaded, or models:/name@alias in MLflow's registry.
        profile: Of the runs that it starts.
        overrides: Of the runs that it starts, after those that the teacher's files call for.
        marker: File that is uploaded last; empty to wait until all weights are there and nothing has changed.
        quiet_minutes: How long nothing has changed, without a marker.
        endpoint: Of the S3 server; empty for AWS_ENDPOINT_URL or AWS.
        deployment: Which is started, as flow/deployment.
        runs_root: Where runs live; teachers lie in its folder teachers.
    """
    logger = get_run_logger()
    version = newest_version(source, endpoint, runs_root, marker, 60 * quiet_minutes)
    if version is None:
        logger.info("%s: no complete checkpoint", source)
        return ""
    memory = f"teacher_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if (Variable.get(memory) or {}).get("fingerprint") == version.fingerprint:
        logger.info("%s: %s has had its run", source, version.name)
        return ""
    try:
        folder = fetch_teacher(version, endpoint, runs_root)
    except ChangedMeanwhileError as change:
        logger.info("%s", change)
        return ""
    flow_run = start_run(version, folder, deployment, profile, overrides)
    # After the start: a kill in between asks for the same run again, and the server gives the same one.
    memo = {"source": source, "fingerprint": version.fingerprint, "name": version.name, "flow_run": flow_run}
    Variable.set(memory, memo, overwrite=True)
    logger.info("%s: %s is new; started flow run %s", source, version.name, flow_run)
    return flow_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 looked, 1 the bucket or the registry does not answer, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.watch_teachers", description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="s3://bucket/prefix or models:/name@alias")
    parser.add_argument("--profile", default="full", help="of the runs that it starts")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--marker", default="", help="file that is uploaded last")
    parser.add_argument("--quiet-minutes", type=float, default=QUIET_MINUTES, help="without a marker")
    parser.add_argument("--endpoint", default="", help="of the S3 server")
    parser.add_argument("--deployment", default=STARTED, help="which is started")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    options = parser.parse_args(arguments)

    def watch() -> int:
        flow_run = watch_teachers(
            options.source, options.profile, options.overrides, options.marker, options.quiet_minutes,
            options.endpoint, options.deployment, options.runs,
        )  # fmt: skip
        print(f"started flow run {flow_run}" if flow_run else "nothing new")
        return 0

    return run_command(watch, "the same command looks again")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
