"""Errors as OpenAI's clients expect them: a status, and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import math

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from slimtts.errors import InvalidInputError, SlimttsError

SHOWN_CHARACTERS = 80


class Refusal(SlimttsError):
    """A call that gets no audio, with the status and code that say why."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s

    def response(self) -> JSONResponse:
        """What the client gets."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, headers)


def of_bad_body(error: RequestValidationError) -> Refusal:
    """The first thing that is wrong with a request's JSON, in one line."""
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid" or not place:
        observed, param = "no JSON object", None
        allowed = "a JSON object with model and input, sent as application/json"
    else:
        param = place[0]
        shown = repr(problem["input"])
        shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."
        observed = {"missing": "nothing", "extra_forbidden": "a key that is not known"}.get(problem["type"], shown)
        allowed = problem["msg"].removeprefix("Value error, ")
    told = InvalidInputError(param or "body", observed, allowed, "correct the request")
    return Refusal(400, "invalid_request", str(told), param)
