import logging

import pytest

from slimtts.errors import InvalidInputError
from slimtts.workspace import STAGES
from tasks.locks import exclusive_lock
from tasks.promotion_log import PromotionLog
from tasks.stage_runner import StageError, stale_stages
from tasks.tracking import mlflow_client, tracking_uri
from tasks.workspace import compose_params

MODEL = "slimtts-nano"


@pytest.fixture
def compress(prefect_server, toy_checkout, runs_root):
    from flows.compress_model import compress_model

    def run(*overrides):
        return compress_model("toy", "demo", overrides, runs_root, toy_checkout)

    return run


def test_pipeline_runs_once_then_only_what_a_change_touches(compress, started, runs_root, monkeypatch, caplog):
    monkeypatch.setenv("TOY_KILL_ONCE", "distill_student")
    workspace = compress()
    assert started() == [*STAGES[:4], "distill_student", *STAGES[4:]], "the killed stage is tried again, nothing else"
    assert stale_stages(workspace) == {}
    client = mlflow_client(tracking_uri(runs_root))
    aliases = client.get_registered_model(MODEL).aliases
    assert {name: str(version) for name, version in aliases.items()} == {"candidate": "1", "production": "1"}
    run_id = client.get_model_version(MODEL, "1").run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["student.wer_corpus"] == 0.05
    assert run.data.metrics["gap.student_teacher.wer_points.high"] == pytest.approx(0.51)
    assert run.data.metrics["speedup.student.lm"] == pytest.approx(2.0)
    assert run.data.tags["retained_layers"] == "[0, 1, 2, 3, 4, 5]"
    assert run.data.params["distill_student.steps"] == str(compose_params("demo", ()).distill_student.steps)
    assert [metric.step for metric in client.get_metric_history(run_id, "student/loss")] == [1, 2, 3]

    def refuse_to_wait(path, on_wait):
        return exclusive_lock(path)

    with (
        caplog.at_level(logging.INFO),
        monkeypatch.context() as device,
        exclusive_lock(runs_root / ".device.lock"),  # a training of another run
    ):
        device.setattr("tasks.devices.exclusive_lock", refuse_to_wait)
        compress()
    assert started() == []
    assert sum("unchanged, nothing to do" in message for message in caplog.messages) == len(STAGES)
    assert [metric.step for metric in client.get_metric_history(run_id, "student/loss")] == [1, 2, 3]
    assert len(client.get_metric_history(run_id, "student.wer_corpus")) == 1
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    history = PromotionLog(client, runs_root, MODEL)
    assert [event.action for event in history.read().events] == ["promoted"]

    compress("evaluate_student.utterances=150")
    assert started() == ["evaluate_student", "register_model"]
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1, "the same student is the same version"
    assert [event.action for event in history.read().events] == ["promoted", "promoted"], "a new evaluation, decided"

    from flows.promote_model import promote_model

    gate = ["register_model.min_speedup=5"]
    assert promote_model("1", overrides=gate, runs_root=runs_root) == "1", "a refusal moves nothing"
    refused = history.read().events[-1]
    assert (refused.action, refused.decision) == ("refused", "REGRESSION")
    assert refused.flow_run and "@" in refused.actor


def test_failed_stage_fails_the_flow_with_its_message_and_no_retry(compress, started, runs_root, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "score_layers")
    with pytest.raises(StageError, match="score_layers: observed a toy; allowed: none; next: grow up"):
        compress()
    assert started() == ["subset_data", "score_layers"], "bad input is not tried again, later stages do not start"
    client = mlflow_client(tracking_uri(runs_root))
    runs = client.search_runs([client.get_experiment_by_name("slimtts").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]


def test_second_flow_in_a_workspace_is_refused_before_it_changes_anything(compress, runs_root, toy_checkout):
    from tasks.workspace import claimed_workspace

    with claimed_workspace("toy", "demo", [], runs_root, toy_checkout) as workspace:
        before = (workspace / "params.yaml").read_text()
        with pytest.raises(InvalidInputError, match="another run works here"):
            compress("subset_data.seed=9")
        assert (workspace / "params.yaml").read_text() == before
