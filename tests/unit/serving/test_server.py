"""Where a server may listen, and where its model may come from."""

import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from slimtts.cli import main
from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.serving import model_source
from slimtts.serving.model_source import fetch_registered, source_of
from slimtts.serving.request_head import is_loopback
from slimtts.serving.server import api_key_for

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),  # noqa: S104
     ("192.168.1.2", False), ("example.org", False), ("", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_what_is_loopback(host, expected):
    assert is_loopback(host) is expected


def test_other_addresses_need_a_key(monkeypatch):
    monkeypatch.delenv("SLIMTTS_API_KEY", raising=False)
    assert api_key_for("127.0.0.1") is None
    with pytest.raises(InvalidInputError, match=r"--host: observed 0\.0\.0\.0; .*SLIMTTS_API_KEY"):
        api_key_for("0.0.0.0")  # noqa: S104
    monkeypatch.setenv("SLIMTTS_API_KEY", f" {KEY}\n")
    assert api_key_for("0.0.0.0") == KEY  # noqa: S104
    monkeypatch.setenv("SLIMTTS_API_KEY", "short")
    with pytest.raises(InvalidInputError, match="5 characters; allowed: at least 16") as error:
        api_key_for("127.0.0.1")
    assert "short" not in str(error.value)


def test_the_command_line_refuses_in_one_line_before_it_loads_a_model(monkeypatch, capsys):
    monkeypatch.delenv("SLIMTTS_API_KEY", raising=False)
    for arguments in (["--host", "0.0.0.0"], ["--model", "no-such-folder"], ["--waiting", "-1"]):  # noqa: S104
        assert main(["serve", *arguments]) == 2
        told = capsys.readouterr().err
        assert told.startswith("slimtts: --")
        assert told.count("\n") == 1


def test_help_shows_every_limit_without_a_model_library():
    code = (
        "import sys\nfrom slimtts.cli import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'fastapi', 'uvicorn', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--requests-per-minute" in shown
    assert shown.strip().endswith("[]")


def test_folders_and_the_bundle_are_taken_as_they_are(tmp_path):
    assert source_of("bundled")(tmp_path / "x", None).folder is None
    files = source_of(str(tmp_path))(tmp_path / "x", None)
    assert (files.folder, files.id) == (tmp_path, tmp_path.name)


@pytest.mark.parametrize("model", ["", "models:/a b@production", "models:/x", "models:/x@a;b", "models:/../x@a"])
def test_other_sources_are_refused(model):
    with pytest.raises(InvalidInputError, match="--model"):
        source_of(model)


@pytest.fixture
def fetches(monkeypatch):
    """The commands and environments of fetches; the answer is as told."""
    asked = []

    def answer(returncode, stdout="", stderr=""):
        def run(command, **how):
            asked.append((command, how["env"]))
            return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)

        monkeypatch.setattr(model_source.subprocess, "run", run)
        return asked

    return answer


def test_a_registered_model_is_fetched_without_the_servers_key(fetches, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIMTTS_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "needed there")
    told = {"folder": str(tmp_path), "name": "m", "version": "3", "run_id": "r", "student_sha256": "s"}
    asked = fetches(0, "a warning\n" + json.dumps(told) + "\n")
    files = fetch_registered("models:/m@production", tmp_path / "to", "2")
    assert (files.id, files.version, files.folder) == ("m", "3", tmp_path)
    ((command, environment),) = asked
    assert command[1:4] == ["-m", "tasks.fetch_model", "models:/m@production"]
    assert command[-2:] == ["--unless-version", "2"]
    assert "SLIMTTS_API_KEY" not in environment
    assert environment["AWS_SECRET_ACCESS_KEY"] == "needed there"
    fetches(0, json.dumps(told | {"folder": None}))
    assert fetch_registered("models:/m@production", tmp_path / "to", "3") is None


def test_a_failed_fetch_is_its_last_line(fetches, tmp_path):
    fetches(2, stderr="noise\nfetch_model: m version 2: observed a pickle\n")
    with pytest.raises(SlimttsError, match=r"^fetch_model: m version 2: observed a pickle$"):
        fetch_registered("models:/m@production", tmp_path / "to", None)
    fetches(-9)
    with pytest.raises(SlimttsError, match="ended with -9"):
        fetch_registered("models:/m@production", tmp_path / "to", None)


SLOW_RELOAD = """
import sys, time
from types import SimpleNamespace
import uvicorn
from slimtts.serving.app import SpeechServer
from slimtts.serving.limits import ServingLimits
from slimtts.serving.model_source import ModelFiles

def take_up():
    print("taking up", flush=True)
    time.sleep(100)

speaker = SimpleNamespace(voices={}, sample_rate_hz=16_000)
model = SimpleNamespace(id="toy", files=ModelFiles("toy", None), speaker=speaker, loaded_at_s=0)
live = SimpleNamespace(current=model, take_up=take_up)
server = SpeechServer(live, ServingLimits(), None)
uvicorn.run(server.asgi, host="127.0.0.1", port=int(sys.argv[1]), timeout_graceful_shutdown=1)
"""


def test_a_reload_that_takes_long_does_not_hold_up_the_end():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SLOW_RELOAD, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                caller = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with closing(caller):
            caller.sendall(b"POST /admin/reload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
            assert process.stdout.readline() == "taking up\n"
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
