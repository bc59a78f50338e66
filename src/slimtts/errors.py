"""Errors that speak to a person: what (id), observed, allowed, what to do next."""

from __future__ import annotations

import errno
import os
import re

from slimtts.printable import printable as _printable
from slimtts.redaction import redacted

# What the system says no to, and what a person does about it; other codes are mistakes of ours.
PERMISSION = ("a place that can be read and written", "correct its permissions, or name another place")
REFUSALS = {
    errno.ENOSPC: (
        "room for one checkpoint",
        "free space and run the same command again; what was finished is kept",
    ),
    errno.EDQUOT: ("room for one checkpoint", "free space, or ask for more"),
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: PERMISSION,
    errno.ENOTDIR: ("folders on the way to it", "correct the path"),
    errno.ENAMETOOLONG: ("a shorter path", "choose shorter names"),
}


def printable(text: object) -> str:
    """As a person may see it: neither steering a terminal nor telling a secret."""
    return redacted(_printable(text))


class SlimttsError(Exception):
    """Base of every error that the command line prints as one line, without a traceback.

    The line is printable whatever the error is about: ids and paths of strangers are escaped in it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidInputError(SlimttsError):
    """Data, parameters or a checkpoint that a person must mend."""

    def __init__(self, what: str, observed: object, allowed: object, next_step: str) -> None:
        self.what, self.observed, self.allowed, self.next_step = what, observed, allowed, next_step
        super().__init__(what, observed, allowed, next_step)

    def __str__(self) -> str:
        what, observed, allowed, next_step = map(printable, (self.what, self.observed, self.allowed, self.next_step))
        return f"{what}: observed {observed}; allowed: {allowed}; next: {next_step}"


class MissingToolError(SlimttsError):
    """A program or package that this step needs is not installed."""

    def __init__(self, tool: str, why: str, next_step: str) -> None:
        self.tool, self.why, self.next_step = tool, why, next_step
        super().__init__(tool, why, next_step)

    def __str__(self) -> str:
        tool, why, next_step = map(printable, (self.tool, self.why, self.next_step))
        return f"{tool}: observed not installed ({why}); next: {next_step}"


def refusal_of_system(error: Exception, command: str) -> InvalidInputError | None:
    """A full disk or a place that cannot be written as a line for a person; None for any other error.

    safetensors writes in Rust and gives the code of the system only as text.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        code = int(match[1])
    if code not in REFUSALS:
        return None
    allowed, next_step = REFUSALS[code]
    observed = "no space left on the disk" if code == errno.ENOSPC else os.strerror(code)
    return InvalidInputError(str(getattr(error, "filename", None) or command), observed, allowed, next_step)
