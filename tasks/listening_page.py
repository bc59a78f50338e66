"""The listening page at the end of a run: a folder in the workspace, and one file in MLflow, whose viewer plays it."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from slimtts.storage import files_sha256
from tasks.artifacts import show_listening_page
from tasks.stages import mlflow_is_away
from tasks.tracking import TrackedRun

FOLDER = "report"
PAGE = "listening.html"  # MLflow shows a file without its neighbours, so this one holds its audio
TAG = "listening_page"


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[30, 120, 300], retry_condition_fn=mlflow_is_away)
def publish_listening_page(run: TrackedRun) -> None:
    """Makes the pages of what the run's stages put out; a page that MLflow has already is not sent again."""
    from slimtts.report.content import read_content
    from slimtts.report.page import write_folder, write_single_file

    logger, content = get_run_logger(), read_content(run.workspace)
    folder = write_folder(content, run.workspace / FOLDER)
    page = write_single_file(content, run.workspace / PAGE)
    digest = files_sha256([page])
    if run.client.get_run(run.run_id).data.tags.get(TAG) != digest:
        run.client.log_artifact(run.run_id, str(page))
        run.client.set_tag(run.run_id, TAG, digest)
    show_listening_page(run, PAGE, logger)
    logger.info("%d sentences to listen to: %s", len(content.sentences), folder)
