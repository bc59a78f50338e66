import json
import logging
import time

import pytest
import yaml
from mlflow import MlflowClient

from slimtts.workspace import Workspace
from tasks.live_curves import CurveLog, curve_files, following_curves
from tasks.stage_numbers import numbers
from tasks.tracking import TrackedRun, open_run, tracked_run

logger = logging.getLogger("test")


@pytest.fixture
def workspace(runs_root):
    """A folder with params and a place for curves."""
    root = runs_root / "toy"
    (root / "progress" / "distill_student" / "student").mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"distill_student": {"steps": 5}}))
    return root


def _write_curve(workspace, steps, ending="\n"):
    lines = [f'{{"name": "student", "step": {step}, "loss": {1 / step}, "note": "text"}}' for step in steps]
    path = workspace / "progress" / "distill_student" / "student" / "curves.jsonl"
    path.write_text("\n".join(lines) + ending)


def _steps(run):
    return [metric.step for metric in run.client.get_metric_history(run.run_id, "student/loss")]


def _sync(run):
    return CurveLog(run).sync(curve_files(Workspace(run.workspace)))


def test_resumed_run_goes_on_without_a_duplicate_step(workspace):
    run = open_run(workspace, "demo")
    _write_curve(workspace, [1, 2, 3, 4])
    assert _sync(run) == 4
    _write_curve(workspace, [1, 2])  # killed, resumed from the checkpoint at step 2
    again = open_run(workspace, "demo")
    assert again == run
    assert _sync(again) == 0
    _write_curve(workspace, [1, 2, 3, 4, 5, 6])
    assert _sync(again) == 2
    assert _steps(again) == [1, 2, 3, 4, 5, 6]


def test_line_that_is_still_being_written_waits(workspace):
    run = open_run(workspace, "demo")
    _write_curve(workspace, [1, 2], ending='\n{"name": "stud')
    _sync(run)
    assert _steps(run) == [1, 2]


def test_finished_file_and_live_file_are_one_curve(workspace):
    run = open_run(workspace, "demo")
    _write_curve(workspace, [1, 2, 3])
    (workspace / "student").mkdir()
    (workspace / "student" / "student.jsonl").write_text('{"name": "student", "step": 1, "loss": 1.0}\n')
    _sync(run)
    assert _steps(run) == [1, 2, 3]


def test_curves_of_a_former_training_are_not_taken_for_live_ones(workspace):
    run = open_run(workspace, "demo")
    _write_curve(workspace, [1, 2, 3, 4, 5, 6])
    with following_curves(run, logger, every_s=0.02):
        time.sleep(0.3)
        assert _steps(run) == []
        _write_curve(workspace, [1, 2])
        deadline = time.monotonic() + 20
        while _steps(run) != [1, 2] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _steps(run) == [1, 2]
        _write_curve(workspace, [1, 2, 3])
    assert _steps(run) == [1, 2, 3]


def test_changed_params_are_a_run_of_their_own_and_the_same_ones_are_not(workspace):
    first = open_run(workspace, "demo")
    assert open_run(workspace, "demo").run_id == first.run_id
    (workspace / "params.yaml").write_text(yaml.safe_dump({"distill_student": {"steps": 6}}))
    second = open_run(workspace, "demo")
    assert second.run_id != first.run_id
    assert second.client.get_run(second.run_id).data.params == {"distill_student.steps": "6"}


def test_run_status_says_how_it_ended_and_changes_when_it_goes_on(workspace):
    with pytest.raises(ValueError, match="boom"), tracked_run(workspace, "demo") as run:
        raise ValueError("boom")
    assert run.client.get_run(run.run_id).info.status == "FAILED"
    with tracked_run(workspace, "demo") as again:
        assert again.client.get_run(run.run_id).info.status == "RUNNING"
    assert again.client.get_run(run.run_id).info.status == "FINISHED"


def test_numbers_flatten_intervals_and_leave_out_what_is_none():
    nested = {"a": {"wer": {"value": 1, "low": 0.5, "high": 2}, "name": "x", "ok": True, "bad": float("nan")}, "n": 3}
    assert numbers("", nested) == {"a.wer": 1.0, "a.wer.low": 0.5, "a.wer.high": 2.0, "n": 3.0}


def _runs(run):
    experiments = [experiment.experiment_id for experiment in run.client.search_experiments()]
    return [found.info.run_id for found in run.client.search_runs(experiments)]


def test_kill_between_the_run_and_its_note_leaves_one_run(workspace, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as until_killed:
        until_killed.setattr(MlflowClient, "log_batch", kill)
        with pytest.raises(Killed):
            open_run(workspace, "demo")
    run = open_run(workspace, "demo")
    assert _runs(run) == [run.run_id]
    assert run.client.get_run(run.run_id).data.params == {"distill_student.steps": "5"}


def test_request_that_a_dying_server_served_twice_leaves_one_run(workspace, monkeypatch):
    create = MlflowClient.create_run

    def create_twice(*arguments, **names):
        create(*arguments, **names)
        return create(*arguments, **names)

    monkeypatch.setattr(MlflowClient, "create_run", create_twice)
    run = open_run(workspace, "demo")
    assert _runs(run) == [run.run_id]
    assert open_run(workspace, "demo") == run


def test_a_run_that_was_deleted_comes_back(workspace, caplog):
    run = open_run(workspace, "demo")
    _write_curve(workspace, [1, 2])
    _sync(run)
    run.client.delete_run(run.run_id)
    assert open_run(workspace, "demo") == run
    assert run.client.get_run(run.run_id).info.lifecycle_stage == "active"
    assert _steps(run) == [1, 2]
    assert [record.getMessage() for record in caplog.records if "deleted" in record.getMessage()] == [
        f"MLflow run {run.run_id} was deleted; restored, because its workspace goes on"
    ]


def test_an_experiment_that_was_deleted_comes_back_with_its_runs(workspace, runs_root, caplog):
    run = open_run(workspace, "demo")
    experiment = run.client.get_run(run.run_id).info.experiment_id
    run.client.delete_experiment(experiment)
    assert open_run(workspace, "demo") == run
    assert run.client.get_experiment(experiment).lifecycle_stage == "active"
    assert run.client.get_run(run.run_id).info.lifecycle_stage == "active"
    assert "MLflow experiment slimtts was deleted; restored with its runs" in caplog.text
    run.client.delete_experiment(experiment)
    (runs_root / "other").mkdir()
    (runs_root / "other" / "params.yaml").write_text("{distill_student: {steps: 9}}")
    assert open_run(runs_root / "other", "demo").run_id != run.run_id


def _remove_for_good(runs_root, run_id):
    """As `mlflow gc` does."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{runs_root / 'mlflow.db'}", str(runs_root / "mlartifacts"))
    store.delete_run(run_id)
    store._hard_delete_run(run_id)


def test_a_run_that_is_gone_for_good_gets_a_successor(workspace, runs_root, caplog):
    run = open_run(workspace, "demo")
    _remove_for_good(runs_root, run.run_id)
    successor = open_run(workspace, "demo")
    assert successor.run_id != run.run_id
    assert f"MLflow run {run.run_id} is gone for good; its numbers go to a new one" in caplog.text
    assert successor.client.get_run(successor.run_id).data.params == {"distill_student.steps": "5"}
    assert open_run(workspace, "demo") == successor, "which is remembered"


def test_a_run_that_is_deleted_while_its_flow_runs_is_finished_all_the_same(workspace):
    with tracked_run(workspace, "demo") as run:
        run.client.delete_run(run.run_id)
    found = run.client.get_run(run.run_id).info
    assert (found.lifecycle_stage, found.status) == ("active", "FINISHED")


def test_a_damaged_note_of_the_run_is_a_new_run(workspace):
    first = open_run(workspace, "demo")
    for text in ("{", "[]", '{"run_id": 3}', "\x00"):
        (workspace / ".mlflow-run.json").write_text(text)
        assert open_run(workspace, "demo").run_id != first.run_id


def test_no_login_is_kept_beside_the_run(workspace, monkeypatch, runs_root):
    address = f"sqlite:///{runs_root / 'mlflow.db'}"
    run = open_run(workspace, "demo")
    kept = json.loads((workspace / ".mlflow-run.json").read_text())
    assert kept["tracking_uri"] == address
    former = {**kept, "tracking_uri": address.replace("://", "://ann:secret@", 1)}  # as an earlier release kept it
    (workspace / ".mlflow-run.json").write_text(json.dumps(former))
    assert open_run(workspace, "demo") == run
    assert "ann" not in repr(TrackedRun("postgresql://ann:secret@db/mlflow", "1", workspace))
