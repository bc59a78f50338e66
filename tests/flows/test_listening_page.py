"""The page at the end of a run: in the workspace, in MLflow once, and linked in Prefect."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from slimtts.errors import InvalidInputError
from slimtts.testing.finished_run import write_finished_run
from tasks.listening_page import PAGE, TAG, publish_listening_page
from tasks.tracking import TrackedRun, open_run
from tasks.workspace import CHECKOUT


@flow
def shows(run: TrackedRun) -> str:
    publish_listening_page(run)
    return str(flow_run.id)


@pytest.fixture
def run(runs_root, monkeypatch):
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    return open_run(write_finished_run(runs_root / "toy", CHECKOUT / "params.yaml"), "demo")


def test_the_page_is_made_sent_once_and_linked(run, prefect_server, monkeypatch):
    sent = []
    log_artifact = type(run.client).log_artifact
    monkeypatch.setattr(
        type(run.client), "log_artifact", lambda *args, **more: sent.append(args[2]) or log_artifact(*args, **more)
    )
    shows(run)
    assert (run.workspace / "report" / "index.html").is_file()
    assert [artifact.path for artifact in run.client.list_artifacts(run.run_id)] == [PAGE]
    digest = run.client.get_run(run.run_id).data.tags[TAG]
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example/")
    of_this_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[shows(run)]))
    assert (len(sent), run.client.get_run(run.run_id).data.tags[TAG]) == (1, digest)
    with get_client(sync_client=True) as client:
        (link,) = client.read_artifacts(artifact_filter=of_this_run)
    assert link.key == "listening" and f"{run.run_id}/artifacts/{PAGE}" in link.data


def test_a_damaged_result_is_named(run, prefect_server):
    (run.workspace / "evaluation" / "kept.json").unlink()
    with pytest.raises(InvalidInputError, match=r"kept\.json"):
        shows(run)
