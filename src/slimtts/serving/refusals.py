"""Errors as OpenAI's clients expect them: a status, and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import math

from pydantic import ValidationError
from starlette.responses import JSONResponse

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.printable import printable

SHOWN_CHARACTERS = 80
ENDING = (408, 431, 505, "two_lengths")  # what follows on such a connection could be anything


class Refusal(SlimttsError):
    """A call that gets no audio, with the status and code that say why."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, printable(message)
        self.param = None if param is None else printable(param)
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        """What the client gets."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in ENDING or self.code in ENDING:
            headers["Connection"] = "close"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, headers)


def of_no_object(observed: str = "no JSON object") -> Refusal:
    """The body is not what it should be as a whole."""
    allowed = "a JSON object with model and input, sent as application/json"
    return Refusal(400, "invalid_request", str(InvalidInputError("body", observed, allowed, "correct the request")))


def of_bad_field(error: ValidationError) -> Refusal:
    """The first thing that is wrong with a request's fields, in one line."""
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return of_no_object()
    param = str(problem["loc"][0])[:SHOWN_CHARACTERS]
    shown = repr(problem["input"])
    shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."
    observed = {"missing": "nothing", "extra_forbidden": "a key that is not known"}.get(problem["type"], shown)
    allowed = problem["msg"].removeprefix("Value error, ")
    told = InvalidInputError(param, observed, allowed, "correct the request")
    return Refusal(400, "invalid_request", str(told), param)
