"""What a start can find in its way: files that are no databases, names and variables that cannot be."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

pytestmark = pytest.mark.hostile

HEADER = b"SQLite format 3\x00"


def rank(numbers):
    """Runs in the child: a shell with these variables starts a training."""
    from slimtts.distill.ranks import lock_name

    os.environ.update(zip(("RANK", "LOCAL_RANK", "WORLD_SIZE"), numbers, strict=True))
    lock_name("distill_student")


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 512,
        b"my notes, and more of them" * 40,
        HEADER + b"\xff" * 2000,
        HEADER + (4096).to_bytes(2, "big") + b"\x00" * 4000,
        b"\x1f\x8b\x08" + b"\x00" * 600,
        b"PGDMP" * 300,
    ],
    ids=["zeros", "text", "header and noise", "header and nothing", "gzip", "postgres"],
)
def test_a_file_that_is_no_database_is_refused_and_kept(refused, tmp_path, content):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    assert str(path) in refused("tasks.mlflow_database:ensure_database", [f"sqlite:///{path}"], 120)
    assert path.read_bytes() == content


def test_a_database_of_another_program_that_holds_runs_is_refused_and_kept(refused, tmp_path):
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as other:
        other.executescript("CREATE TABLE runs (weather TEXT); INSERT INTO runs VALUES ('fair')")
    other.close()
    content = path.read_bytes()
    refused("tasks.mlflow_database:ensure_database", [f"sqlite:///{path}"], 120)
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", ["/proc/none/mlflow.db", "/dev/null/mlflow.db", "/sys/mlflow.db"])
def test_a_place_that_holds_no_database_is_refused(refused, place):
    refused("tasks.mlflow_database:ensure_database", [f"sqlite:///{place}"], 120)


def test_a_name_that_is_too_long_for_the_system_is_refused(refused, tmp_path):
    refused("tasks.mlflow_database:ensure_database", [f"sqlite:///{tmp_path}/{'x' * 300}.db"], 120)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(refused, tmp_path, make):
    make(tmp_path / "mlflow.db")
    refused("tasks.mlflow_database:ensure_database", [f"sqlite:///{tmp_path}/mlflow.db"], 120)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["mlflow.db"]


@pytest.mark.parametrize("name", ["mlflow.db", "mlartifacts", "..", "a/b", "x" * 300, "\x1b[31m", "a\nb", ""])
def test_a_name_that_is_no_folder_is_refused(refused, name):
    refused("tasks.workspace:check_name", [name])


@pytest.mark.parametrize("runs", ["/proc/none", "/dev/null/x", "/dev/full"])
def test_runs_that_cannot_be_written_are_refused(refused, runs):
    refused("tasks.service_checks:check_folder", [Path(runs)])


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9",
        "http://",
        "http://[bad",
        "http://127.0.0.1:99999",
        "http://a b/",
        "http://\x1b[31m@127.0.0.1:9",
    ],
)
def test_an_address_where_nobody_answers_is_refused(refused, address):
    refused("tasks.service_checks:check_answer", ["MLFLOW_TRACKING_URI", address, "/health"])


@pytest.mark.parametrize(
    "numbers", [("x", "0", "2"), ("9", "0", "2"), ("0", "0", "0"), ("1e3", "0", "2"), ("0", "²", "2")]
)
def test_variables_of_no_possible_process_are_refused(refused, numbers):
    refused(f"{__name__}:rank", [numbers])
