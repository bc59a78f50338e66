"""The doctor sees what is missing, says what to do, asks nobody it was not told of, and tells no secret."""

import argparse
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import pytest

from slimtts.commands import doctor
from slimtts.commands.doctor import NotReadyError
from slimtts.doctor import machine, packages, services
from slimtts.doctor.finding import Finding, as_json, as_text, blockers
from slimtts.doctor.machine import machine_findings
from slimtts.doctor.models import BUNDLED, hub_cache, model_findings
from slimtts.doctor.packages import package_findings
from slimtts.doctor.services import service_findings
from slimtts.doctor.tools import tool_findings

ROOT = Path(__file__).resolve().parents[3]
SECRET = "hunter2"


def by_name(findings):
    return {finding.name: finding for finding in findings}


def run(capsys, *words):
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    doctor.run(parser.parse_args(list(words)))
    return capsys.readouterr().out


@pytest.fixture
def port():
    """A server on loopback that says 200 to health and 403 to all else, and remembers what it was told."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.heard.append((self.path, dict(self.headers)))
            self.send_response(200 if self.path.endswith("/health") else 403)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    server.heard = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_whole_installation_is_ready_and_says_so_to_programs(capsys, monkeypatch):
    enough = [Finding("Machine", "memory", "ok", "", is_needed=True)]
    monkeypatch.setattr(machine, "machine_findings", lambda _: enough)
    told = json.loads(run(capsys, "--json"))
    assert told["demo_ready"] is True
    states = {row["name"]: row["state"] for row in told["findings"]}
    assert states["Python"] == states["slimtts"] == states["bundled teacher"] == states["checkout"] == "ok"


def test_without_packages_it_still_works_and_ends_with_1(tmp_path):
    """Nothing but the standard library and the source."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "import argparse\nfrom slimtts.commands import doctor\n"
        "parser = argparse.ArgumentParser(); doctor.add_arguments(parser)\n"
        "try:\n doctor.run(parser.parse_args(['--json']))\n"
        "except doctor.NotReadyError as error:\n print(error, file=sys.stderr); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = by_name([Finding(**row) for row in json.loads(done.stdout)["findings"]])
    assert rows["slimtts"].state == "missing" and rows["slimtts"].next_step == "make install"
    assert rows["bundled teacher"].state == "ok"
    assert rows["git"].state == "off"  # not on this PATH, and not needed
    assert "slimtts" in done.stderr and "next: make install" in done.stderr and len(done.stderr.splitlines()) == 1


def test_it_is_quick_and_loads_no_framework():
    code = (
        "import sys; from pathlib import Path; from slimtts.commands.doctor import look_around\n"
        "look_around(Path('runs'))\n"
        "print([m for m in ('torch', 'transformers', 'mlflow', 'prefect', 'numpy', 'requests') if m in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
    assert time.perf_counter() - started < 30  # half a second where nothing else runs


def declared(monkeypatch, lines, versions):
    class Extras:
        def get_all(self, _):
            return ["llasa", "orpheus"]

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(packages.metadata, "metadata", lambda _: Extras())
    monkeypatch.setattr(packages.metadata, "version", version)


def test_missing_and_wrong_packages_are_named_with_what_is_wanted(monkeypatch):
    lines = ["torch==2.11.0", "prefect==3.8.8", "dvc", "snac==1.2.1; extra == 'orpheus'"]
    declared(monkeypatch, lines, {"slimtts": "1", "torch": "2.9.0", "dvc": "3"})
    rows = by_name(package_findings())
    assert (rows["torch"].state, rows["torch"].detail) == ("missing", "2.9.0 installed, wanted ==2.11.0")
    assert rows["prefect"].detail == "not installed, wanted ==3.8.8" and rows["prefect"].is_needed
    assert "dvc" not in rows and rows["slimtts"].detail.startswith("1: 1 of 3 as declared")
    assert rows["family llasa"].state == "ok"
    assert rows["family orpheus"].next_step == "pip install 'slimtts[orpheus]'" and not rows["family orpheus"].is_needed


def test_the_environment_names_who_is_asked_and_secrets_go_nowhere(port):
    address = f"http://ann:{SECRET}@127.0.0.1:{port.server_port}"
    environment = {
        "MLFLOW_TRACKING_URI": address,
        "PREFECT_API_URL": f"{address}/api",
        "AWS_ENDPOINT_URL": f"{address}/?key={SECRET}",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    rows = by_name(service_findings(environment))
    assert rows["MLflow"].detail == f"http://127.0.0.1:{port.server_port}: answers"
    assert rows["Prefect"].state == "ok" and "answers (403" in rows["S3"].detail
    assert rows["model hub"].state == "off"
    assert sorted(path for path, _ in port.heard) == ["/", "/api/health", "/health"]
    assert SECRET not in as_json(list(rows.values())) + repr(port.heard)


def test_a_server_that_is_not_there_is_missing_with_the_variable_to_correct():
    rows = by_name(service_findings({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PREFECT_API_URL": "http://[bad"}))
    assert rows["MLflow"].state == "missing" and "MLFLOW_TRACKING_URI" in rows["MLflow"].next_step
    assert rows["Prefect"].detail == "an address that cannot be read"
    assert not blockers(list(rows.values()))


def test_a_file_of_numbers_needs_no_server_and_a_data_base_is_only_knocked_at(port, tmp_path):
    there = tmp_path / "mlflow.db"
    there.touch()
    assert by_name(service_findings({"MLFLOW_TRACKING_URI": f"sqlite:///{there}"}))["MLflow"].detail.endswith("there")
    new = by_name(service_findings({"MLFLOW_TRACKING_URI": "sqlite:///runs/new.db"}))["MLflow"]
    assert new.detail == "sqlite runs/new.db: made at first use"
    address = f"postgresql+psycopg2://ann:{SECRET}@127.0.0.1:{port.server_port}/mlflow"
    row = by_name(service_findings({"MLFLOW_TRACKING_URI": address}))["MLflow"]
    assert row.detail == f"postgresql+psycopg2://127.0.0.1:{port.server_port}: answers"


def test_silence_ends_in_time(monkeypatch):
    monkeypatch.setattr(services, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(services, "_ask", lambda *_: time.sleep(5))
    started = time.perf_counter()
    row = by_name(service_findings({"HF_ENDPOINT": "http://127.0.0.1:9"}))["model hub"]
    assert (row.state, row.detail) == ("missing", "did not answer in time") and time.perf_counter() - started < 4


def test_models_in_the_cache_are_listed_with_their_commits(tmp_path):
    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "x").write_bytes(b"0" * (1 << 20))
    rows = by_name(model_findings({"HF_HOME": str(tmp_path)}))
    assert rows["owner/name"].detail == f"1 MB, {'a' * 40}" and rows["owner/name"].state == "ok"
    (folder / "blobs" / "y.incomplete").touch()
    assert by_name(model_findings({"HF_HOME": str(tmp_path)}))["owner/name"].state == "missing"
    assert hub_cache({"HF_HUB_CACHE": "/x", "HF_HOME": "/y"}) == Path("/x")
    assert hub_cache({"XDG_CACHE_HOME": "/z"}) == Path("/z/huggingface/hub")


def test_a_bundle_of_pointers_is_not_whole(tmp_path):
    for name in BUNDLED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("version of a pointer")
    row = by_name(model_findings({"HF_HOME": str(tmp_path)}, tmp_path))["bundled teacher"]
    assert row.state == "missing" and "teacher/model.safetensors" in row.detail and row.is_needed


def test_the_machine_is_described_and_too_little_is_missing(tmp_path, monkeypatch):
    rows = by_name(machine_findings(tmp_path / "runs", {"OMP_NUM_THREADS": "3"}))
    assert "cores usable" in rows["processor"].detail and "OMP_NUM_THREADS=3" in rows["processor"].detail
    assert rows["disk"].is_needed and "GB free for" in rows["disk"].detail
    monkeypatch.setattr(machine, "NEEDED_MEMORY_GB", 1e6)
    monkeypatch.setattr(machine, "NEEDED_DISK_GB", 1e9)
    poor = machine_findings(tmp_path)
    assert {finding.name for finding in blockers(poor)} == {"memory", "disk"}


def test_gpus_are_what_nvidia_smi_tells(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    row = by_name(machine_findings(tmp_path, {"CUDA_VISIBLE_DEVICES": "0"}))["GPU 0"]
    assert row.detail == "NVIDIA H200, 143771 MiB, 570.1; CUDA_VISIBLE_DEVICES=0"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert by_name(machine_findings(tmp_path, {}))["GPU"].state == "missing"


def test_programs_are_found_on_the_path_and_in_the_environment(tmp_path):
    browser = tmp_path / "browser"
    browser.touch()
    rows = by_name(tool_findings({"PATH": str(tmp_path), "CHROMIUM": str(browser)}))
    assert str(browser) in rows["chromium"].detail and rows["git"].state == "off" and rows["dvc"].state == "ok"
    assert by_name(tool_findings({"PATH": ""}, tmp_path))["checkout"].state == "missing"


def test_text_is_aligned_and_the_error_names_each_way_out(capsys, monkeypatch):
    rows = [
        Finding("Programs", "dvc", "missing", "not found", "make install", is_needed=True),
        Finding("Programs", "chromium", "off", "not found", "install Chromium"),
        Finding("Machine", "disk", "missing", "0.1 GB", "make room", is_needed=True),
    ]
    lines = as_text(rows).splitlines()
    assert lines[:3] == ["Programs", "  missing  dvc       not found", "                     -> make install"]
    assert lines.index("Machine") == 6 and lines[5] == ""
    monkeypatch.setattr(doctor, "look_around", lambda _: rows)
    with pytest.raises(NotReadyError, match=r"dvc, disk; next: make install; make room") as caught:
        run(capsys)
    assert caught.value.exit_code == 1
