"""The Makefile's targets do what the pages say; nothing is run here but make itself."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def planned(*arguments):
    """What make would run."""
    done = subprocess.run(["make", "--always-make", "-n", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("install", ["-m venv .venv", "pip install", "-r requirements.txt", "-e ."]),
        ("lint", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"]),
        ("test", ["ruff check .", "mypy", "lint-imports", "pytest -m", "requirements-stack.txt"]),
        ("demo", ["flows.compress_model --profile demo --name demo"]),
        ("demo PROFILE=full NAME=x", ["flows.compress_model --profile full --name x"]),
        ("ui RUNS=/r", ["mlflow server --host 127.0.0.1", "sqlite:////r/mlflow.db", "prefect server start"]),
        ("stack", ["infra.stack up --folder runs/stack"]),
    ],
)
def test_every_target_is_what_the_pages_say(target, commands):
    plan = planned(*target.split())
    assert [command for command in commands if command not in plan] == []


@pytest.mark.parametrize(("chromium", "is_left_out"), [("/usr/bin/true", False), ("", True)])
def test_browser_tests_run_where_there_is_a_browser(chromium, is_left_out):
    assert ("not browser" in planned("test", f"CHROMIUM={chromium}")) is is_left_out


def test_help_lists_every_target():
    told = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    listed = {line.split()[0] for line in told.splitlines() if line and not line.startswith("make")}
    (phony,) = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)
    assert listed == set(phony.split())
