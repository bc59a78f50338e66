"""Modules of the checkout end with one line: no traceback for a server that is away, no secret, no broken pipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.params import parse_params
from tasks.server_errors import exit_code
from tasks.tracking import tracking_uri
from tasks.workspace import compose_params

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct-horse-battery"


@pytest.fixture(autouse=True)
def no_login(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")


def fails_with(error):
    def work():
        raise error

    return work


def test_exit_codes(capsys):
    assert exit_code(lambda: 0) == 0
    assert exit_code(fails_with(InvalidInputError("a", "b", "c", "d"))) == 2
    assert exit_code(fails_with(SlimttsError("e"))) == 1
    assert capsys.readouterr().err == "slimtts: a: observed b; allowed: c; next: d\nslimtts: e\n"
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


def test_a_server_that_is_away_is_one_line(capsys):
    from mlflow.exceptions import MlflowException

    away = MlflowException(f"API request to http://u:{PASSWORD}@h/api failed\nMax retries exceeded")
    assert exit_code(fails_with(away)) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("slimtts: mlflow: observed API request to http://***@h/api failed Max retries")
    assert shown.endswith("next: check MLFLOW_TRACKING_URI and its login\n") and shown.count("\n") == 1


@pytest.mark.parametrize("question", [["history"], ["lineage", "1"], ["restore", "1", "--into", "nowhere"]])
def test_a_password_in_the_address_of_mlflow_is_not_told(question, tmp_path):
    environment = {
        **os.environ, "MLFLOW_TRACKING_URI": f"http://ann:{PASSWORD}@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "tasks.versions", *question, "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert PASSWORD not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("slimtts: MLFLOW_TRACKING_URI: observed ")
    assert "Traceback" not in done.stderr


def test_a_login_in_the_address_moves_to_where_the_client_looks(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann%40box:p%2Fss@mlflow:5050/base")
    assert tracking_uri(tmp_path) == "https://mlflow:5050/base"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann@box", "p/ss")
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow:5050/base", "and so it is for processes started here"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://other:word@mlflow")
    assert tracking_uri(tmp_path) == "https://mlflow"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann@box", "a login that was given by itself counts"


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("storage.s3_endpoint", f"http://key:{PASSWORD}@127.0.0.1:9000"),
        ("storage.s3_endpoint", f"https://{PASSWORD}@host"),
        ("storage.s3_endpoint", f"http://host:9000?key={PASSWORD}"),
        ("storage.s3_endpoint", "http://host\n['remote \"evil\"']"),
        ("storage.s3_endpoint", "host:9000"),
        ("storage.s3_endpoint", "file:///etc"),
        ("storage.dvc_remote", "s3://bucket/x\rurl = s3://other"),
        ("storage.dvc_remote", f"s3://key:{PASSWORD}@bucket/x"),
        ("teacher.source", f"https://ann:{PASSWORD}@hub/x"),
        ("evaluate_student.benchmark_source", f"ftp://ann:{PASSWORD}@host/list"),
    ],
)
def test_logins_and_odd_addresses_in_parameters_are_refused(knob, value):
    section, _, name = knob.partition(".")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values[section][name] = value
    with pytest.raises(InvalidInputError) as refusal:
        parse_params(values, "params.yaml")
    assert knob in str(refusal.value)
    assert PASSWORD not in str(refusal.value)


@pytest.mark.parametrize("value", ["", "http://127.0.0.1:9900", "https://s3.example.org/base", "http://[::1]:9000"])
def test_plain_endpoints_are_taken(value):
    assert compose_params("demo", [f'storage.s3_endpoint="{value}"']).storage.s3_endpoint == value


def test_a_reader_that_has_enough_is_no_error():
    code = "from tasks.server_errors import exit_code\nimport sys\nsys.exit(exit_code(lambda: print('x' * 10**6) or 0))"
    pipe = f'"{sys.executable}" -c "$0" | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", pipe, code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
