"""The speech service's login, against a real MLflow server with passwords: it reads a model and changes nothing."""

import os
import socket
import subprocess
import sys
import time

import pytest
import requests
from mlflow.exceptions import MlflowException

from infra.make_reader import make_reader
from slimtts.errors import InvalidInputError
from tasks.tracking import mlflow_client

ADMIN, READER = ("chief", "0123456789abcdef"), ("speech", "fedcba9876543210")
OF_READER = {"MLFLOW_READER_USERNAME": READER[0], "MLFLOW_READER_PASSWORD": READER[1]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name=basic-auth", f"--port={port}", "--workers=1",
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts",
    ]  # fmt: skip
    environment = {
        **os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "0" * 32, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    for name in ("MLFLOW_TRACKING_URI", "PYTHONSAFEPATH"):
        environment.pop(name, None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 240
            while not _answers(address):
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _answers(address):
    try:
        return requests.get(f"{address}/health", timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture
def login(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def as_user(name, password):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        return mlflow_client(server)

    return as_user


def test_the_reader_reads_a_model_and_changes_nothing(server, login, tmp_path):
    chief = login(*ADMIN)
    run_id = chief.create_run(chief.create_experiment("slimtts")).info.run_id
    chief.log_text(run_id, "weights", "model-1/weights")
    chief.create_registered_model("m")
    chief.create_model_version("m", f"runs:/{run_id}/model-1", run_id=run_id)
    chief.set_registered_model_alias("m", "production", "1")
    for _ in range(2):
        make_reader({"MLFLOW_TRACKING_URI": server, **OF_READER})
    with pytest.raises(InvalidInputError, match="chief, an administrator"):
        make_reader({"MLFLOW_TRACKING_URI": server, **OF_READER, "MLFLOW_READER_USERNAME": "chief"})

    reader = login(*READER)
    assert str(reader.get_model_version_by_alias("m", "production").version) == "1"
    assert [item.path for item in reader.list_artifacts(run_id, "model-1")] == ["model-1/weights"]
    assert reader.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    local = reader.download_artifacts(run_id, "model-1/weights", str(tmp_path))
    assert open(local).read() == "weights"  # noqa: PTH123, SIM115
    forbidden = [
        lambda: reader.set_registered_model_alias("m", "production", "1"),
        lambda: reader.delete_registered_model("m"),
        lambda: reader.set_model_version_tag("m", "1", "student_sha256", "x"),
        lambda: reader.set_tag(run_id, "x", "y"),
        lambda: reader.delete_run(run_id),
        lambda: reader.log_text(run_id, "others", "model-1/weights"),
    ]
    for change in forbidden:
        with pytest.raises((MlflowException, requests.HTTPError), match=r"403|ermission"):
            change()
    assert login(*ADMIN).get_registered_model("m").aliases == {"production": "1"}


def test_what_is_missing_is_named():
    with pytest.raises(InvalidInputError, match="no MLFLOW_READER_USERNAME, MLFLOW_READER_PASSWORD"):
        make_reader({"MLFLOW_TRACKING_URI": "http://x"})
