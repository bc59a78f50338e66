"""What a start finds around it: proxies, homes that cannot be written, servers that do not answer, taken names."""

import http.server
import threading
from pathlib import Path

import httpx
import pytest
import requests

from slimtts.errors import InvalidInputError
from slimtts.proxies import bypass_loopback, drop_unusable
from tasks import service_checks
from tasks.environment import SETTINGS, prepare, use_writable_folders
from tasks.service_checks import check_answer, check_folder, check_tracking
from tasks.stage_runner import stage_environment
from tasks.workspace import check_name

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(service_checks, "PAUSE_S", 0)


@pytest.fixture
def server():
    """A server of this machine that answers with the status in the path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intern.example"}, "intern.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "localhost, .example", "NO_PROXY": "x"}, "localhost,.example,127.0.0.1,::1"),
    ],
)
def test_this_machine_is_added_to_what_needs_no_proxy(given, hosts):
    bypass_loopback(given)
    assert (given["no_proxy"], given["NO_PROXY"]) == (hosts, hosts)


def test_no_proxy_for_everything_stays():
    given = {"NO_PROXY": "*"}
    bypass_loopback(given)
    assert given == {"NO_PROXY": "*"}


@pytest.mark.parametrize("name", PROXIES)
def test_a_server_of_this_machine_is_reached_past_a_proxy(monkeypatch, server, name):
    for each in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, NOBODY)
    environment = {name: NOBODY}
    bypass_loopback(environment)
    for each, value in environment.items():
        monkeypatch.setenv(each, value)
    assert requests.get(f"{server}/200", timeout=5).status_code == 200
    with httpx.Client(timeout=5) as client:
        assert client.get(f"{server}/200").status_code == 200


def test_a_socks_proxy_that_no_client_can_use_is_dropped_and_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("slimtts.proxies.find_spec", lambda _: None)
    environment = {"ALL_PROXY": "socks5://127.0.0.1:9", "HTTP_PROXY": "http://proxy:3128", "HOME": str(tmp_path)}
    prepare(environment, tmp_path)
    assert "ALL_PROXY" not in environment and environment["HTTP_PROXY"] == "http://proxy:3128"
    assert capsys.readouterr().err == "slimtts: ALL_PROXY is not used: a SOCKS proxy needs the package socksio\n"
    monkeypatch.setattr("slimtts.proxies.find_spec", lambda _: "there")
    assert drop_unusable({"ALL_PROXY": "socks5://127.0.0.1:9"}) == []


def test_settings_of_the_user_win(tmp_path):
    environment = {"DO_NOT_TRACK": "0", "HOME": str(tmp_path)}
    prepare(environment, tmp_path / "runs")
    assert environment["DO_NOT_TRACK"] == "0"
    assert environment["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == SETTINGS["PREFECT_RESULTS_DEFAULT_SERIALIZER"]


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null", "/dev/null/x"])
def test_a_home_that_cannot_be_written_is_replaced_below_the_runs(tmp_path, home):
    environment = {"HOME": home}
    use_writable_folders(environment, tmp_path / "runs" / ".home")
    for name, folder in environment.items():
        if name != "HOME":
            assert Path(folder).is_dir() and tmp_path in Path(folder).parents, name
    assert {"PREFECT_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"} < environment.keys()
    assert environment["HOME"] == home, "keys and settings there can still be read"


def test_a_home_that_can_be_written_stays_and_gets_no_folders(tmp_path):
    environment = {"HOME": str(tmp_path / "ann")}
    use_writable_folders(environment, tmp_path / "runs" / ".home")
    assert environment == {"HOME": str(tmp_path / "ann")}
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_the_user_that_cannot_be_written_is_replaced_alone(tmp_path):
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "/proc/none", "PREFECT_HOME": str(tmp_path / "prefect")}
    use_writable_folders(environment, tmp_path / ".home")
    assert environment["XDG_CACHE_HOME"] == str(tmp_path / ".home" / ".cache")
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")


def test_a_spare_home_that_cannot_be_made_is_left_to_who_needs_it():
    environment = {"HOME": "/proc/none"}
    use_writable_folders(environment, Path("/proc/runs/.home"))
    assert environment["PREFECT_HOME"] == "/proc/runs/.home/.prefect"


def test_a_stage_is_no_process_of_a_training_that_the_shell_was_in(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    environment = stage_environment()
    assert "LOCAL_RANK" not in environment and environment["WORLD_SIZE"] == "2"


@pytest.mark.parametrize("runs", ["/proc/none/runs", "/dev/null/runs", "/dev/null"])
def test_runs_that_cannot_be_written_are_refused_in_one_line(runs):
    with pytest.raises(
        InvalidInputError, match=rf"^{runs}: observed .*; allowed: a folder that can be written; next: "
    ):
        check_folder(Path(runs))


def test_a_folder_of_runs_is_made_and_nothing_stays_in_it(tmp_path):
    check_folder(tmp_path / "a" / "runs")
    assert list((tmp_path / "a" / "runs").iterdir()) == []


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_server_that_answers_is_there(server, status):
    check_answer("PREFECT_API_URL", f"{server}/{status}/", "/health")


@pytest.mark.parametrize(
    ("address", "observed"),
    [
        (f"{NOBODY}/api", "ConnectionError at http://127.0.0.1:9"),
        ("http://ann:secret@127.0.0.1:9", "ConnectionError at http://127.0.0.1:9"),
        ("http://", "InvalidURL at http://"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line_without_its_password(no_pause, address, observed):
    with pytest.raises(InvalidInputError) as refusal:
        check_answer("MLFLOW_TRACKING_URI", address, "/health")
    assert str(refusal.value).startswith(f"MLFLOW_TRACKING_URI: observed {observed}")
    assert "secret" not in str(refusal.value)


def test_a_server_that_cannot_answer_now_is_asked_again(no_pause, server):
    with pytest.raises(InvalidInputError, match=r"MLFLOW_TRACKING_URI: observed status 503 at http://127\.0\.0\.1:"):
        check_answer("MLFLOW_TRACKING_URI", f"{server}/503", "/health")


def test_the_store_of_this_disk_needs_no_server(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_tracking(tmp_path)


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-journal", "mlartifacts", "stack", "x" * 101, "x" * 300])
def test_a_run_is_not_named_like_what_lies_beside_it(name):
    with pytest.raises(
        InvalidInputError,
        match=r"--name: .*; allowed: (letters.* at most 100|not what lies beside the runs: mlflow)",
    ):
        check_name(name)
