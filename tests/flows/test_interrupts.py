"""The default set-up, without any server: Ctrl-C typed into a terminal, and `kill -9`, at a first start and later."""

import os
import signal
import sqlite3
import sys
import time
from contextlib import closing

import psutil
import pytest

from tasks.workspace import CHECKOUT

from .terminal import CTRL_C, Terminal

START_S = 420  # a first start on two busy cores: imports, two databases, DVC
END_S = 20
SERVER_STARTS = "starts Prefect's temporary server"
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def terminal(tmp_path):
    """Starts commands in terminals, with Prefect's folder and the runs in `tmp_path`."""
    opened = []

    def start(*command):
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        environment |= {
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "src")]),
        }
        opened.append(Terminal([sys.executable, "-m", *command], cwd=CHECKOUT, env=environment))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@pytest.fixture
def compress(terminal, tmp_path):
    def start(name):
        return terminal("flows.compress_model", "--name", name, "--runs", str(tmp_path / "runs"))

    return start


def below(terminal):
    """Its server, its stage, and what watches over them."""
    return psutil.Process(terminal.process.pid).children(recursive=True)


def interrupted(terminal, presses=1):
    """Types Ctrl-C; the lines that follow, once the command and all below it have ended in time."""
    children, before = below(terminal), len(terminal.text)
    began = time.monotonic()
    for _ in range(presses):
        terminal.type(CTRL_C)
        time.sleep(0.3)
    assert terminal.end(END_S) == 130, terminal.text[before:]
    assert time.monotonic() - began < END_S
    assert psutil.wait_procs(children, timeout=5)[1] == [], "nothing is left behind"
    lines = [line for line in terminal.text[before:].splitlines() if line.strip("^C \r\n")]
    assert len(lines) <= 5, lines
    assert "slimtts: interrupted" in lines[-1]
    return lines


def query(path, question):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(question).fetchall()


def states(tmp_path):
    return query(tmp_path / "prefect" / "prefect.db", "SELECT state_type FROM flow_run ORDER BY created")


def test_ctrl_c_while_starting_and_while_a_stage_runs_ends_in_order(compress, tmp_path):
    imports = compress("early")
    time.sleep(1)
    assert len(interrupted(imports)) == 1

    start = compress("early")
    start.wait_for(SERVER_STARTS, START_S)
    database = tmp_path / "prefect" / "prefect.db"
    start.wait_until(database.exists, START_S)  # its migrations have begun
    assert "the same command goes on in" in interrupted(start, presses=2)[-1]

    run = compress("early")
    run.wait_for("subset_data: first run", START_S)
    run.wait_until(lambda: any("subset_data" in process.cmdline() for process in below(run)), START_S)
    interrupted(run)
    assert states(tmp_path) == [("CANCELLED",)]
    assert query(database, "SELECT name FROM task_run WHERE state_type NOT IN ('CRASHED', 'CANCELLED')") == []
    assert query(tmp_path / "runs" / "mlflow.db", "SELECT status FROM runs") == [("KILLED",)]

    again = compress("early")
    again.wait_for("subset_data: first run", START_S)
    interrupted(again, presses=3)
    assert states(tmp_path) == [("CANCELLED",), ("CANCELLED",)]
    assert query(tmp_path / "runs" / "mlflow.db", "SELECT count(*) FROM runs") == [(1,)], "the same run went on"


@pytest.mark.faults
def test_ctrl_c_ends_the_command_that_becomes_the_flow(terminal, tmp_path):
    run = terminal("slimtts.cli", "compress", "--teacher", "bundled", "--name", "interrupted-test")
    run.wait_for(SERVER_STARTS, START_S)
    assert "the same command goes on in" in interrupted(run)[-1]


@pytest.mark.faults
def test_two_first_starts_both_work_and_kill_9_leaves_no_server(compress, tmp_path):
    both = [compress("left"), compress("right")]
    for run in both:
        run.wait_for("subset_data: first run", START_S)
    children = [process for run in both for process in below(run)]
    servers = [process for process in children if "prefect.server.api.server:create_app" in process.cmdline()]
    assert len([server for server in servers if "uvicorn" in server.cmdline()[2]]) == 2
    for run in both:
        os.kill(run.process.pid, signal.SIGKILL)
    alive = psutil.wait_procs(children, timeout=END_S)[1]
    assert [process.cmdline() for process in alive] == []
    assert states(tmp_path) == [("RUNNING",), ("RUNNING",)], "nobody could tell Prefect"
