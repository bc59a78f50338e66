"""Something done again and again beside the work, in a thread that ends with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SILENT_S = 25.0  # after so long without a line there is one; a stage itself tells every 20 s
Logger = logging.Logger | logging.LoggerAdapter[Any]


@contextmanager
def repeating(action: Callable[[], object], every_s: float) -> Iterator[None]:
    """Calls `action` every so often while the block runs; a call under way is waited for at the end."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_s):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class LineClock:
    """When the last line of some work came."""

    def __init__(self) -> None:
        self.began_s = self.last_s = time.monotonic()

    def note(self) -> None:
        """A line has just come."""
        self.last_s = time.monotonic()


@contextmanager
def telling(logger: Logger, title: str, what: str, every_s: float | None = None) -> Iterator[LineClock]:
    """While the block runs, a line in the log whenever none was noted for so long: what is done, and since when."""
    wanted_s, clock = SILENT_S if every_s is None else every_s, LineClock()

    def look() -> None:
        if time.monotonic() - clock.last_s >= wanted_s:
            elapsed_s = round(time.monotonic() - clock.began_s)
            logger.info("%s: %s, %d:%02d so far", title, what, *divmod(elapsed_s, 60))
            clock.note()

    with repeating(look, wanted_s / 10):
        yield clock
