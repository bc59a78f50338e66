"""Errors that speak to a person: what (id), observed, allowed, what to do next."""

from __future__ import annotations


class SlimttsError(Exception):
    """Base of every error that the command line prints as one line, without a traceback."""


class InvalidInputError(SlimttsError):
    """Data, parameters or a checkpoint that a person must mend."""

    def __init__(self, what: str, observed: object, allowed: object, next_step: str) -> None:
        self.what, self.observed, self.allowed, self.next_step = what, observed, allowed, next_step
        super().__init__(what, observed, allowed, next_step)

    def __str__(self) -> str:
        message = f"{self.what}: observed {self.observed}; allowed: {self.allowed}; next: {self.next_step}"
        return " ".join(message.splitlines())


class MissingToolError(SlimttsError):
    """A program or package that this step needs is not installed."""

    def __init__(self, tool: str, why: str, next_step: str) -> None:
        self.tool, self.why, self.next_step = tool, why, next_step
        super().__init__(tool, why, next_step)

    def __str__(self) -> str:
        message = f"{self.tool}: observed not installed ({self.why}); next: {self.next_step}"
        return " ".join(message.splitlines())
