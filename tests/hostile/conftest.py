"""Hostile inputs, each in a process of its own: nothing may crash, hang, pass unseen or take memory without bound.

A forkserver imports the package once; each attempt is a fork of it, so that an attempt costs no import.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest

PRELOADED = ["slimtts.cli", "slimtts.teachers.loading", "slimtts.data.sources", "slimtts.evaluation.recognition"]
MEMORY_BOUND_MIB = 1024  # above what the process holds before it reads the input
TIME_BOUND_S = 60.0
REFUSED, ACCEPTED, TRACEBACK, DIED, HUNG = "refused", "accepted", "traceback", "died", "hung"


@dataclass(frozen=True)
class Attempt:
    """What one hostile input did."""

    outcome: str
    message: str
    memory_mib: float
    wall_s: float


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(connection: Connection, target: str, arguments: Sequence[Any]) -> None:
    """Runs `module:function` with the arguments, or the command line where the target is 'cli'."""
    before_mib = _peak_mib()
    output, errors = io.StringIO(), io.StringIO()
    outcome = ACCEPTED
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            if target == "cli":
                from slimtts.cli import main

                outcome = ACCEPTED if main(list(arguments)) == 0 else REFUSED
            else:
                module, _, name = target.partition(":")
                getattr(importlib.import_module(module), name)(*arguments)
    except SystemExit as stop:
        outcome = ACCEPTED if not stop.code else REFUSED
    except Exception as error:
        from slimtts.errors import SlimttsError

        expected = isinstance(error, SlimttsError)
        outcome = REFUSED if expected else TRACEBACK
        errors.write(str(error) if expected else traceback.format_exc())
    message = errors.getvalue() if outcome != ACCEPTED else output.getvalue() + errors.getvalue()
    connection.send((outcome, message, _peak_mib() - before_mib))
    connection.close()
    sys.stdout.flush()


@pytest.fixture(scope="session")
def forkserver() -> multiprocessing.context.ForkServerContext:
    """One server for the session; the package is imported in it once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, __name__])
    return context


@pytest.fixture
def attempt(forkserver: multiprocessing.context.ForkServerContext) -> Callable[..., Attempt]:
    """`attempt("cli", [words])` or `attempt("module:function", [arguments])`: what it did, never an exception."""

    def run(target: str, arguments: Sequence[Any], time_bound_s: float = TIME_BOUND_S) -> Attempt:
        ours, theirs = forkserver.Pipe(duplex=False)
        process = forkserver.Process(target=_child, args=(theirs, target, arguments))
        began = time.monotonic()
        process.start()
        theirs.close()
        try:
            if not ours.poll(time_bound_s):
                return Attempt(HUNG, f"no answer in {time_bound_s:.0f} s", 0.0, time.monotonic() - began)
            outcome, message, memory_mib = ours.recv()
        except EOFError:
            process.join()
            return Attempt(DIED, f"exit code {process.exitcode}", 0.0, time.monotonic() - began)
        finally:
            process.kill()
            process.join()
        return Attempt(outcome, message, memory_mib, time.monotonic() - began)

    return run


@pytest.fixture
def refused(attempt: Callable[..., Attempt]) -> Callable[..., str]:
    """Runs an attempt that must be refused in one line within the bounds; gives the line."""

    def run(target: str, arguments: Sequence[Any], time_bound_s: float = TIME_BOUND_S) -> str:
        made = attempt(target, arguments, time_bound_s)
        assert made.outcome == REFUSED, made
        assert made.memory_mib <= MEMORY_BOUND_MIB, made
        lines = [line for line in made.message.splitlines() if "observed" in line]
        assert len(lines) == 1, made
        assert "next:" in lines[0], made
        assert lines[0].isprintable(), made
        return lines[0]

    return run
