"""How far a long step is, with the time left: a bar at a terminal, a line now and then in a log, nothing in a pipe."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

from slimtts.printable import printable

WISH = "SLIMTTS_PROGRESS"  # "lines" asks for lines: who runs stages for a log sets it
LINE_EVERY_S = 30.0


class ProgressLines(tqdm):  # type: ignore[type-arg]
    """tqdm that writes whole lines: a log keeps them, and nobody has to read control characters."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """`training student: 120 of 600 steps, 04:10 left`."""
        state: dict[str, Any] = dict(self.format_dict)
        done, total = int(state["n"]), int(state["total"])
        rate = state["rate"] or (done / state["elapsed"] if state["elapsed"] else 0)
        left = f", {self.format_interval((total - done) / rate)} left" if rate and done < total else ""
        if done:
            print(f"{self.desc}: {done} of {total} {self.unit}s{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """The last line came with the last update, or the step was left early."""
        self.disable = True


def progress_bar(total: int, desc: str, unit: str, disable: bool = False) -> Any:
    """A context manager whose `update(n)` tells that n more units are done."""
    if disable:
        return tqdm(disable=True)
    desc = printable(desc)
    if sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, dynamic_ncols=True)
    if os.environ.get(WISH) == "lines":
        return ProgressLines(total=total, desc=desc, unit=unit, mininterval=LINE_EVERY_S, miniters=0)
    return tqdm(disable=True)
