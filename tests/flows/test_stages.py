"""What surrounds a stage: the device it owns, the pages it shows, the numbers that wait while MLflow is away."""

import importlib.util
import logging
from contextlib import contextmanager

import pytest
import yaml

from slimtts.errors import InvalidInputError
from slimtts.workspace import STAGES, Workspace
from tasks import stages
from tasks.artifacts import finished_steps, layer_rows, run_page, show_stage, showing_progress, total_steps
from tasks.devices import GPU_LIMIT, owned_devices, visible_devices
from tasks.live_curves import catch_up, following_curves
from tasks.locks import exclusive_lock
from tasks.tracking import TrackedRun, log_stage, log_stage_or_wait, open_run
from tasks.workspace import compose_params

logger = logging.getLogger("test")
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def finished(runs_root, toy_checkout, monkeypatch):
    """A workspace with the results of all toy stages, without DVC's part."""
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    root = runs_root / "toy"
    params = compose_params("demo", ["distill_student.steps=3", "distill_student.control=true"]).model_dump(mode="json")
    workspace = Workspace(root)
    for folder in (workspace.data, workspace.scores, workspace.pruned, workspace.evaluation):
        folder.mkdir(parents=True)
    workspace.params.write_text(yaml.safe_dump(params))
    spec = importlib.util.spec_from_file_location("toy_stage", toy_checkout / "src" / "toy_stage.py")
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    for stage in STAGES:
        getattr(toy, stage)(params, workspace)
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {stage: {"cmd": stage} for stage in STAGES}}))
    return root


@pytest.mark.parametrize(
    ("given", "seen"), [(None, []), ("", []), ("-1", []), ("1", ["1"]), ("3, 0", ["0", "3"]), ("GPU-1a", ["GPU-1a"])]
)
def test_devices_are_those_that_the_worker_was_given(monkeypatch, given, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_devices() == seen


def test_a_device_has_one_stage_and_its_neighbour_is_free(monkeypatch, tmp_path, prefect_server):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    def slots():
        with get_client(sync_client=True) as client:
            return client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with owned_devices(tmp_path, "score_layers", logger):
        pass  # a server without the limit
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=2))
    with owned_devices(tmp_path, "score_layers", logger):
        assert slots() == 1
        with exclusive_lock(tmp_path / ".device-0.lock"):
            pass
        with (
            pytest.raises(InvalidInputError, match="another run works here"),
            exclusive_lock(tmp_path / ".device-1.lock"),
        ):
            pass
    assert slots() == 0


@pytest.mark.parametrize(
    ("changes", "events"),
    [
        ([{}], ["asked"]),
        ([{"distill_student": ["params"]}, {}], ["asked", "waited for the device", "asked"]),
    ],
)
def test_dvc_is_asked_before_a_device_is_waited_for_and_again_below_its_lock(monkeypatch, tmp_path, changes, events):
    seen = []

    def ask(workspace, *stages):
        seen.append("asked")
        return changes.pop(0)

    @contextmanager
    def wait(*_):
        seen.append("waited for the device")
        yield

    monkeypatch.setattr("tasks.stage_runner.stale_stages", ask)
    monkeypatch.setattr("tasks.stage_runner.remove_changed", lambda *_: [])
    monkeypatch.setattr(stages, "owned_devices", wait)
    monkeypatch.setattr(stages, "get_run_logger", lambda: logger)
    for what_follows in ("log_stage_or_wait", "show_stage"):
        monkeypatch.setattr(stages, what_follows, lambda *_: None)
    run = TrackedRun("sqlite:///", "id", tmp_path)
    assert stages._bring_up_to_date("distill_student", run, 1, owns_device=True) is False
    assert (seen, changes) == (events, [])


def test_layers_are_shown_with_their_fate(finished):
    rows = layer_rows(Workspace(finished))
    assert [row["fate"] for row in rows] == ["kept"] * 6 + ["dropped"] * 6
    assert rows[7]["importance"] == "2"


def test_pages_of_a_run_in_prefect(finished, prefect_server):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.runtime import flow_run

    run = open_run(finished, "demo")
    curves = Workspace(finished).checkpoints / "student" / "curves.jsonl"

    @flow
    def shows() -> str:
        for stage in STAGES:
            show_stage(run, stage, logger)
        with showing_progress(run, logger, every_s=0.01):
            curves.write_text("".join(f'{{"name": "student", "step": {step}, "loss": 1}}\n' for step in range(2)))
        return flow_run.id

    before = {curves: curves.stat().st_mtime_ns}
    of_this_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[shows()]))
    assert total_steps(Workspace(finished)) == 6, "student and control, which is no longer"
    assert finished_steps(Workspace(finished), before) == 2
    assert finished_steps(Workspace(finished), {curves: curves.stat().st_mtime_ns}) == 0, "of a former training"
    with get_client(sync_client=True) as client:
        found = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=of_this_run)}
    assert {"layers", "comparison", "distillation"} <= found.keys()
    assert found["distillation"].data == 100.0
    assert '"system": "student"' in found["comparison"].data


def test_links_lead_to_the_server_that_a_browser_reaches(finished, monkeypatch):
    run = open_run(finished, "demo")
    assert run_page(run) is None, "a file has no pages"
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example/")
    experiment = run.client.get_run(run.run_id).info.experiment_id
    assert run_page(run) == f"https://mlflow.example/#/experiments/{experiment}/runs/{run.run_id}"


def test_numbers_wait_while_mlflow_is_away_and_come_once(finished, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = open_run(finished, "demo")
    away = TrackedRun(NOBODY, run.run_id, finished)
    assert not log_stage_or_wait(away, "evaluate_student", logger)
    assert "the numbers of evaluate_student wait for MLflow" in caplog.text
    with following_curves(away, logger, every_s=0.01):
        pass
    assert "curves wait for MLflow" in caplog.text
    for _ in range(2):
        log_stage(run, "evaluate_student")
        catch_up(run)
    assert len(run.client.get_metric_history(run.run_id, "student.wer_corpus")) == 1
    assert [point.step for point in run.client.get_metric_history(run.run_id, "student/loss")] == [1, 2, 3]
