"""The supervisor itself, with services that take milliseconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

CHECKOUT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("toy_supervisor.py")
WITHIN_S = 30.0


@pytest.fixture
def supervised(tmp_path):
    """Starts the supervisor; at the end nothing of it may be left."""
    started = []

    def start(*arguments):
        command = [sys.executable, str(SCRIPT), str(tmp_path), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return psutil.Process(process.pid), process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _until(reached):
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _starts(folder):
    path = folder / "starts"
    return path.read_text().split() if path.exists() else []


def _all_ready(folder):
    for name in ("first", "second"):
        (folder / f"{name}.ready").touch()
    _until(lambda: _starts(folder) == ["first", "second"])


def test_a_wave_waits_for_the_health_of_the_one_before(supervised, tmp_path):
    supervised()
    _until(lambda: _starts(tmp_path) == ["first"])
    time.sleep(0.6)
    assert _starts(tmp_path) == ["first"]
    (tmp_path / "first.ready").touch()
    _until(lambda: _starts(tmp_path) == ["first", "second"])


def test_nothing_survives_the_supervisor_not_even_what_detached_itself(supervised, tmp_path):
    supervisor, process = supervised()
    _all_ready(tmp_path)
    _until(lambda: len(supervisor.children(recursive=True)) == 5)  # two leashes, two services, the detached one
    family = supervisor.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    _until(lambda: not any(member.is_running() for member in family))


def test_a_stop_ends_every_process(supervised, tmp_path):
    supervisor, process = supervised()
    _all_ready(tmp_path)
    family = supervisor.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WITHIN_S) == 0
    assert not any(member.is_running() for member in family)
    assert not (tmp_path / "state.json").exists()


def test_a_killed_service_takes_its_tree_along_and_starts_again(supervised, tmp_path):
    supervisor, _ = supervised()
    _all_ready(tmp_path)
    _until(lambda: len(supervisor.children(recursive=True)) == 5)
    (leash,) = [child for child in supervisor.children() if len(child.children(recursive=True)) == 2]
    service, detached = leash.children()[0], leash.children(recursive=True)[1]
    service.kill()
    _until(lambda: _starts(tmp_path) == ["first", "second", "first"])
    assert not detached.is_running()


def test_a_held_service_stays_away_until_it_is_released(supervised, tmp_path):
    supervised()
    _all_ready(tmp_path)
    (tmp_path / "hold" / "second").touch()
    _until(lambda: '"held"' in (tmp_path / "state.json").read_text())
    time.sleep(0.6)
    assert _starts(tmp_path) == ["first", "second"]
    (tmp_path / "hold" / "second").unlink()
    _until(lambda: _starts(tmp_path) == ["first", "second", "second"])


def test_a_service_that_never_comes_up_is_named_with_its_last_words(supervised, tmp_path):
    _, process = supervised("broken")
    output, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert _starts(tmp_path).count("broken") == 3
    last = output.splitlines()[-1]
    assert last.startswith("slimtts: broken: observed 3 starts without health, the last with code 1 (no such setting)")
