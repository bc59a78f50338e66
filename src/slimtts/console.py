"""How every command ends and logs: all output is written, a reader may have enough of it, and no log line is forged."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

from slimtts.printable import printable_record

EXIT_CUT_OFF = 141  # as of any program that ends because nobody reads it


class _PrintableRecord(logging.LogRecord):
    """Libraries log names as they find them, tensors' for example."""

    def getMessage(self) -> str:
        """Printable."""
        return printable_record(super().getMessage())


def exit_code_of(run: Callable[[], int]) -> int:
    """Runs a command to its exit code; `slimtts lineage 1 | head` is no error, once head has what it wants.

    A broken pipe of anything but the output is an error as ever: then the work was not done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that this terminal cannot show
    record_factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_PrintableRecord)
    try:
        return _written_out(run)
    finally:
        logging.setLogRecordFactory(record_factory)


def _written_out(run: Callable[[], int]) -> int:
    code, stop = 0, None
    try:
        try:
            code = run()
        except SystemExit as asked:  # by argparse
            stop = asked
        sys.stdout.flush()  # else it breaks after the last line of Python that could notice
    except BrokenPipeError:
        left = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not left:
            raise
        for stream in left:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if sys.stderr in left:
            return EXIT_CUT_OFF
    if stop is not None:
        raise stop
    return code


def _is_unread(stream: TextIO) -> bool:
    """Is this a pipe whose reader is gone?"""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no stream of the system
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False
