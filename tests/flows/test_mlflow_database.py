"""MLflow's SQLite file at a first start: kills, two at once, and what former starts left half-made."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from slimtts.errors import InvalidInputError
from tasks.checkouts import CHECKOUT
from tasks.mlflow_database import ensure_database, sqlite_file
from tasks.tracking import mlflow_client

HERE = Path(__file__).parent
TABLES = "CREATE TABLE experiments (name TEXT); CREATE TABLE runs (run_uuid TEXT);"
UNVERSIONED = TABLES + "INSERT INTO experiments VALUES ('Default');"  # noqa: S608 - no words of others
CUT_OFF = TABLES + "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('9')"  # noqa: S608


def kills(folder, moments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "src")))}
    command = [sys.executable, str(HERE / "database_kills.py"), str(folder), str(moments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("moments", [4, pytest.param(24, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_a_kill_at_any_moment_leaves_the_next_start_a_whole_database(tmp_path, moments):
    outcomes = kills(tmp_path, moments)
    assert len(outcomes) == moments
    assert {(outcome["killed"], outcome["again"], outcome["check"]) for outcome in outcomes} == {(-9, 0, "ok")}
    assert all(outcome["runs"] == ["first"] for outcome in outcomes), "the later start writes and reads"
    leftovers = [outcome for outcome in outcomes if outcome["left"] and outcome["moment"] != -1]
    assert leftovers == [], "half-made files of kills are removed"


def test_two_first_starts_make_one_database(tmp_path):
    code = (
        "import sys; from tasks.tracking import mlflow_client; client = mlflow_client(sys.argv[1]);"
        "client.create_run('0', run_name=sys.argv[2])"
    )
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    both = [
        subprocess.Popen([sys.executable, "-c", code, uri, name], stderr=subprocess.PIPE, text=True)
        for name in ("left", "right")
    ]
    told = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted(run.info.run_name for run in mlflow_client(uri).search_runs(["0"])) == ["left", "right"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".mlflow.db.lock", "mlflow.db"]


@pytest.mark.parametrize("sql", ["", UNVERSIONED, CUT_OFF])
def test_a_half_made_database_without_runs_is_set_aside_and_made_again(tmp_path, sql):
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as former:
        former.executescript(sql)
    former.close()
    held = path.read_bytes()
    client = mlflow_client(f"sqlite:///{path}")
    run = client.create_run(client.create_experiment("slimtts"), run_name="mine")
    assert client.get_run(run.info.run_id).info.run_name == "mine"
    assert (tmp_path / "mlflow.db.half-made-1").read_bytes() == held
    assert not (tmp_path / "mlflow.db.half-made-2").exists()


def test_the_journal_of_a_half_made_database_is_not_played_into_the_new_one(tmp_path):
    """A kill within a transaction leaves a journal beside the file."""
    path = tmp_path / "mlflow.db"
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.executescript('PRAGMA cache_size=1; CREATE TABLE runs (a TEXT);')\n"
        "c.execute('BEGIN')\n"
        'for n in range(500): c.execute("INSERT INTO runs VALUES (hex(randomblob(500)))")\n'
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert (tmp_path / "mlflow.db-journal").exists()
    ensure_database(f"sqlite:///{path}")
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert mlflow_client(f"sqlite:///{path}").search_runs(["0"]) == []


@pytest.mark.parametrize(
    "row",
    [
        "INSERT INTO runs VALUES ('mine')",
        "INSERT INTO experiments VALUES ('slimtts')",
        "CREATE TABLE registered_models (name TEXT); INSERT INTO registered_models VALUES ('mine')",
    ],
)
def test_a_database_of_another_schema_that_holds_something_is_refused_and_kept(tmp_path, row):
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as former:
        former.executescript(TABLES + row)
    former.close()
    held = path.read_bytes()
    with pytest.raises(InvalidInputError, match=r"observed runs in .* without a version; .*next: .*mlflow db upgrade"):
        mlflow_client(f"sqlite:///{path}")
    assert path.read_bytes() == held
    assert sorted(file.name for file in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_what_is_no_database_is_refused_and_kept(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("my notes " * 100)
    with pytest.raises(InvalidInputError, match=r"observed file is not a database; allowed: an SQLite database"):
        ensure_database(f"sqlite:///{path}")
    assert path.read_text() == "my notes " * 100


@pytest.mark.parametrize("in_the_way", ["file", "folder"])
def test_a_place_that_cannot_hold_a_database_is_one_line(tmp_path, in_the_way):
    if in_the_way == "file":
        (tmp_path / "runs").write_text("")
    else:
        (tmp_path / "runs" / "mlflow.db").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match=rf"{tmp_path}/runs/mlflow.db: observed .*next: ") as refusal:
        ensure_database(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert len(str(refusal.value).splitlines()) == 1


def test_only_files_of_sqlite_are_made():
    assert sqlite_file("http://127.0.0.1:5050") is None
    assert sqlite_file("sqlite://") is None
    assert sqlite_file("sqlite:///:memory:") is None
    assert sqlite_file("sqlite:////runs/mlflow.db") == Path("/runs/mlflow.db")
    assert sqlite_file("sqlite:///mlflow.db") == Path.cwd() / "mlflow.db"
