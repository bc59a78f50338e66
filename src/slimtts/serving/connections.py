"""One connection with time limits: clients that are slow, idle or do not read give way, and nobody is kept out by them.

uvicorn bounds none of these by itself: it waits for a first request for ever, and again after any byte of a later one.
"""

from __future__ import annotations

import asyncio
import http
import sys
from collections.abc import Hashable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from slimtts.serving.limits import ServingLimits
from slimtts.serving.refusals import Refusal

LOOK_EVERY_S = 0.5
SPARE_CONNECTIONS = 64  # beyond the limit, for health probes while all others are busy


class BoundedConnection(H11Protocol):
    """uvicorn's connection, which ends when the client keeps it waiting, and gives way to a newer one when idle."""

    def __init__(self, limits: ServingLimits, **given: Any) -> None:
        super().__init__(**given)
        self._limits = limits
        self._wait: Hashable = None  # what is waited for, as `_waits_for` tells it
        self.waits_since = self.loop.time()
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts it, makes room for it, and watches it."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._make_room()
        self._look_at_it()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watches it no more."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client reads: its time begins anew."""
        super().resume_writing()
        self._wait = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, told in the shape of every other error."""
        problem = sys.exception()
        status = problem.error_status_hint if isinstance(problem, h11.RemoteProtocolError) else 400
        if self.cycle is not None and not self.cycle.response_complete:  # its body is broken: nobody answers it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        allowed = "fewer and shorter headers" if status == 431 else "HTTP/1.1"
        self._refuse(Refusal(status, "bad_request", f"observed no request; allowed: {allowed}; next: correct it"))

    def _unsupported_upgrade_warning(self) -> None:
        """Asking for another protocol is no news: the answer is HTTP."""

    def _waits_for(self) -> tuple[str, float] | None:
        """What the client has to do next, and the seconds that it has; None while it is our turn."""
        if self.transport.is_closing() or self.flow.write_paused:
            return "read", self._limits.stall_seconds
        if self.conn.their_state is h11.IDLE:
            return "head", self._limits.head_seconds
        if self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            return "rest", self._limits.body_seconds  # of a body that was refused
        return None

    def _look_at_it(self) -> None:
        self._look = self.loop.call_later(LOOK_EVERY_S, self._look_at_it)
        waits_for, now = self._waits_for(), self.loop.time()
        wait = None if waits_for is None else (waits_for[0], id(self.cycle))
        if wait != self._wait:
            self._wait, self.waits_since = wait, now
        if waits_for is None or now - self.waits_since < waits_for[1]:
            return
        if waits_for[0] == "head" and self.conn.trailing_data[0]:
            seconds = f"{waits_for[1]:g} s"
            text = f"observed no whole head in {seconds}; allowed: less; next: send it at once"
            self._refuse(Refusal(408, "head_timeout", text))
        elif waits_for[0] == "head":
            self.transport.close()
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        """Ends the connection that has idled longest, else the one whose body comes slowest; else this one."""
        others = [
            other
            for other in self.connections
            if isinstance(other, BoundedConnection) and other is not self and not other.transport.is_closing()
        ]
        for state in (h11.IDLE, h11.SEND_BODY):
            slow = [other for other in others if other.conn.their_state is state]
            if slow:
                min(slow, key=lambda other: other.waits_since).transport.abort()
                return
        if len(self.connections) > self._limits.connections + SPARE_CONNECTIONS:
            self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            answer = refusal.response()
            reason = http.HTTPStatus(answer.status_code).phrase.encode()
            headers = [*(pair for pair in answer.raw_headers if pair[0] != b"connection"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=answer.status_code, headers=headers, reason=reason),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
