"""Last, when all services have worked, been killed and been asked for what they refuse."""

import dataclasses
import os

import psycopg2
import pytest
import requests

from infra.stack import postgres
from infra.stack.credentials import make_credentials, read_credentials
from slimtts.errors import InvalidInputError


def _secrets(stack):
    return list(dataclasses.asdict(stack.credentials).values())


def test_only_the_owner_reads_the_secrets(stack):
    status = stack.layout.secrets.stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_uid == os.getuid()
    assert len(set(_secrets(stack))) == 7


def test_no_log_and_no_command_line_holds_a_secret(stack):
    with pytest.raises(psycopg2.OperationalError):
        postgres.connect(stack.layout, "mlflow", "wrong")
    for service in ("mlflow", "prefect", "s3"):
        assert (
            requests.get(stack.layout.url(service) + "/api/2.0", auth=("slimtts", "wrong"), timeout=10).status_code
            >= 400
        )
    texts = {path: path.read_text(errors="replace") for path in stack.layout.logs.iterdir()}
    assert {path.stem for path in texts} >= {"postgres", "s3", "mlflow", "prefect", "worker"}
    assert "401" in texts[stack.layout.logs / "mlflow.log"]
    assert "password authentication failed" in texts[stack.layout.logs / "postgres.log"]
    for service in stack.state()["services"]:
        for process in stack.processes(service):
            texts[f"command of {service}"] = " ".join(process.cmdline())
    for name in ("supervisor.log", "state.json", "mlflow-auth.ini"):
        texts[name] = (stack.layout.folder / name).read_text()
    for where, text in texts.items():
        assert not [secret for secret in _secrets(stack) if secret in text], where


def test_credentials_show_nothing_and_stay_the_same(stack, tmp_path):
    assert not [secret for secret in _secrets(stack) if secret in repr(stack.credentials)]
    path = tmp_path / "secrets.json"
    made = make_credentials(path)
    assert make_credentials(path) == made
    assert made != stack.credentials


def test_a_file_that_others_read_is_refused(tmp_path):
    path = tmp_path / "secrets.json"
    make_credentials(path)
    path.chmod(0o644)
    with pytest.raises(InvalidInputError, match="observed mode 0644; allowed: 0600"):
        read_credentials(path)
