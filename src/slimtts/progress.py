"""How far a long step is: a bar at a terminal, lines in a log, nothing in a pipe; and no step is silent for long.

A log gets a line at least every 20 seconds: by a bar that moves, or, where nothing moves, by the heartbeat, which
tells what is being done (`doing`) and since when.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from slimtts.printable import printable

WISH = "SLIMTTS_PROGRESS"  # "lines" asks for lines: who runs stages for a log sets it
LINE_EVERY_S = 20.0
CHECKS = 20  # in that time: how exactly it is kept


@dataclass(frozen=True)
class _Step:
    describe: Callable[[], str]
    began_s: float


_steps: list[_Step] = []  # under way, the innermost last
_last_line_s = [0.0]


def note_line() -> None:
    """Somebody has just written a line; the heartbeat waits from now."""
    _last_line_s[0] = time.monotonic()


@contextmanager
def doing(what: str | Callable[[], str]) -> Iterator[None]:
    """Names what the block does, for the heartbeat: `the student speaks 200 sentences`."""
    step = _Step(what if callable(what) else lambda: what, time.monotonic())
    _steps.append(step)
    try:
        yield
    finally:
        _steps.remove(step)


@contextmanager
def heartbeat(title: str, every_s: float | None = None) -> Iterator[None]:
    """While the block runs, a line on stderr whenever none came for so long; nothing where nobody wants progress."""
    wanted_s = LINE_EVERY_S if every_s is None else every_s
    ended, began_s = threading.Event(), time.monotonic()
    note_line()

    def watch() -> None:
        while not ended.wait(max(wanted_s / CHECKS, 0.01)):
            if time.monotonic() - _last_line_s[0] >= wanted_s:
                step = _steps[-1] if _steps else _Step(lambda: "at work", began_s)
                elapsed = tqdm.format_interval(time.monotonic() - step.began_s)
                tqdm.write(f"{title}: {step.describe()}, {elapsed} so far", file=sys.stderr)
                sys.stderr.flush()
                note_line()

    thread = threading.Thread(target=watch, daemon=True)
    if sys.stderr.isatty() or os.environ.get(WISH) == "lines":
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()


def watched(record: logging.LogRecord) -> bool:
    """A filter for logging's handlers that lets all pass: the heartbeat is told of each line."""
    note_line()
    return True


class ProgressLines(tqdm):  # type: ignore[type-arg]
    """tqdm that writes whole lines: a log keeps them, and nobody has to read control characters."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """`training student: 120 of 600 steps, 04:10 left`."""
        state: dict[str, Any] = dict(self.format_dict)
        done, total = int(state["n"]), int(state["total"])
        rate = state["rate"] or (done / state["elapsed"] if state["elapsed"] else 0)
        left = f", {self.format_interval((total - done) / rate)} left" if rate and done < total else ""
        if done:
            print(f"{self.count()}{left}", file=sys.stderr, flush=True)
            note_line()

    def count(self) -> str:
        """`training student: 120 of 600 steps`."""
        return f"{self.desc}: {int(self.n)} of {self.total} {self.unit}s"

    def close(self) -> None:
        """The last line came with the last update, or the step was left early."""
        self.disable = True


@contextmanager
def progress_bar(total: int, desc: str, unit: str, disable: bool = False) -> Iterator[Any]:
    """`update(n)` of what it gives tells that n more units are done."""
    wants_lines = os.environ.get(WISH) == "lines"
    desc = printable(desc)
    if disable:
        bar = tqdm(disable=True)
    elif sys.stderr.isatty():
        bar = tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True)
    elif wants_lines:
        bar = ProgressLines(total=total, desc=desc, unit=unit, mininterval=LINE_EVERY_S, miniters=0)
    else:
        bar = tqdm(disable=True)
    named = doing(lambda: bar.count() if isinstance(bar, ProgressLines) else desc)
    with nullcontext() if disable else named, bar:
        yield bar
