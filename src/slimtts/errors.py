"""Errors that speak to a person: what (id), observed, allowed, what to do next."""

from __future__ import annotations

from slimtts.printable import printable as _printable
from slimtts.redaction import redacted


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
