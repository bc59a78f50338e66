"""One flow through the worker of the stack: what it leaves in PostgreSQL and in S3."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.stack import postgres
from infra.stack.layout import ARTIFACT_BUCKET, DVC_BUCKET
from tasks.workspace import prepare_workspace

CHECKOUT = Path(__file__).parents[2]
REMOTE = f"s3://{DVC_BUCKET}/toy"


def _rows(stack, database, query, *values):
    connection = postgres.connect(
        stack.layout, database, getattr(stack.credentials, f"postgres_{database}"), database=database
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def finished(stack, toy_checkout, tmp_path_factory):
    """The id of a flow run, and the folder of its runs."""
    runs = tmp_path_factory.mktemp("recorded") / "runs"
    parameters = {
        "name": "recorded",
        "overrides": [f"storage.dvc_remote={REMOTE}"],
        "runs_root": str(runs),
        "checkout": str(toy_checkout),
    }
    command = [sys.executable, str(CHECKOUT / "tests" / "stack" / "deploy_and_run.py")]
    toy = {"TOY_LOG": str(runs.with_name("toy.log"))}
    arguments = ["flows/compress_model.py:compress_model", json.dumps(parameters), json.dumps(toy)]
    environment = {**os.environ, **stack.environment, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()[-1], runs


def test_prefect_keeps_the_run_in_postgres(stack, finished):
    ((state, name),) = _rows(stack, "prefect", "SELECT state_type, name FROM flow_run WHERE id = %s", finished[0])
    assert (state, name) == ("COMPLETED", "recorded")
    tasks = _rows(stack, "prefect", "SELECT state_type FROM task_run WHERE flow_run_id = %s", finished[0])
    assert len(tasks) >= 9
    assert {state for (state,) in tasks} == {"COMPLETED"}
    ((lines,),) = _rows(stack, "prefect", "SELECT count(*) FROM log WHERE flow_run_id = %s", finished[0])
    assert lines > 20


def test_mlflow_keeps_numbers_in_postgres_and_files_in_s3(stack, s3, finished):
    run_id = json.loads((finished[1] / "recorded" / ".mlflow-run.json").read_text())["run_id"]
    ((status,),) = _rows(stack, "mlflow", "SELECT status FROM runs WHERE run_uuid = %s", run_id)
    assert status == "FINISHED"
    curve = _rows(stack, "mlflow", "SELECT step, value FROM metrics WHERE run_uuid = %s AND key = %s ORDER BY step",
                  run_id, "student/loss")  # fmt: skip
    assert curve == [(1, 2.0), (2, 1.0), (3, 0.0)]
    listed = s3.list_objects_v2(Bucket=ARTIFACT_BUCKET)["Contents"]
    wanted = f"{run_id}/artifacts/evaluation/evaluation.json"
    (key,) = [entry["Key"] for entry in listed if entry["Key"].endswith(wanted)]
    stored = s3.get_object(Bucket=ARTIFACT_BUCKET, Key=key)["Body"].read()
    assert stored == (finished[1] / "recorded" / "evaluation" / "evaluation.json").read_bytes()
    versions = _rows(stack, "mlflow", "SELECT version, run_id FROM model_versions WHERE name = 'slimtts-nano'")
    assert (1, run_id) in versions


def test_dvc_brings_the_outputs_back_on_another_machine(clients_of, toy_checkout, finished, tmp_path):
    first = finished[1] / "recorded"
    second = prepare_workspace("recorded", "demo", [f"storage.dvc_remote={REMOTE}"], tmp_path / "runs", toy_checkout)
    (second / "dvc.lock").write_bytes((first / "dvc.lock").read_bytes())
    pulled = subprocess.run([sys.executable, "-m", "dvc", "pull"], cwd=second, capture_output=True, text=True)
    assert pulled.returncode == 0, pulled.stderr
    for name in ("scores/scores.json", "student/report.json", "evaluation/evaluation.json", "release/release.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
