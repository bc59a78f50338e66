"""What every request passes before the application sees it: rate, key, size, time; and an end when the client leaves.

Pure ASGI around the application, so that a refused request costs next to nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slimtts.serving.limits import RateLimit, ServingLimits
from slimtts.serving.numbers import ServingNumbers
from slimtts.serving.refusals import Refusal
from slimtts.serving.request_head import check_head, check_host, is_loopback

logger = logging.getLogger(__name__)

SPEECH, MODELS, RELOAD = "/v1/audio/speech", "/v1/models", "/admin/reload"
HEALTH, READY, METRICS = "/health", "/ready", "/metrics"
OPEN_TO_ALL = (HEALTH, READY)
RETRY_AFTER_S = 1.0
ENDPOINTS = (SPEECH, MODELS, RELOAD, *OPEN_TO_ALL, METRICS)
CLIENT_LEFT = 499


class Gate:
    """Wraps the application. Without an `api_key` only this machine may ask."""

    def __init__(self, app: ASGIApp, limits: ServingLimits, numbers: ServingNumbers, api_key: str | None) -> None:
        self._app, self._limits, self._numbers = app, limits, numbers
        self._key, self._rate = api_key, RateLimit(limits.requests_per_minute)
        self._open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1002, "reason": "HTTP only"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_counted = scope["path"] not in OPEN_TO_ALL
        self._open_requests += is_counted
        try:
            await self._request(scope, receive, send)
        finally:
            self._open_requests -= is_counted

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = _Sent(send)
        limit_s = None if scope["path"] == RELOAD else self._limits.request_seconds
        refusal: Refusal | None = None
        try:
            async with asyncio.timeout(limit_s):
                self._check(scope)
                body = await self._body(receive)
                if body is not None:
                    await self._answer(scope, body, receive, sent)
        except Refusal as error:
            refusal = error
        except TimeoutError:
            refusal = Refusal(
                504, "timeout", f"observed {limit_s:g} s without an end; allowed: less; next: try again with less text"
            )
        if refusal is not None and sent.status is None:
            await refusal.response()(scope, receive, sent.send)
        if sent.status is not None and not sent.is_complete:
            self._numbers.cut_streams.labels("timeout" if refusal else "client left").inc()
            logger.info("%s cut: %s", scope["path"], refusal or "the client left")
        endpoint = scope["path"] if scope["path"] in ENDPOINTS else "other"
        self._numbers.requests.labels(endpoint, str(sent.status or CLIENT_LEFT)).inc()

    def _check(self, scope: Scope) -> None:
        check_head(scope)
        path, headers = scope["path"], Headers(scope=scope)
        if path in OPEN_TO_ALL:
            return
        if self._open_requests > self._limits.connections:
            message = f"observed more than {self._limits.connections} requests at once; next: wait"
            raise Refusal(503, "too_many_requests", message, retry_after_s=RETRY_AFTER_S)
        address = (scope.get("client") or ("local",))[0]
        wait_s = 0.0 if path == METRICS else self._rate.wait_s(address)
        if wait_s:
            message = f"observed more than {self._limits.requests_per_minute:g} requests a minute; next: wait"
            raise Refusal(429, "rate_limit_exceeded", message, retry_after_s=wait_s)
        check_host(headers.get("host"), must_be_here=self._key is None)
        if self._key is not None:
            self._check_key(headers)
            return
        if path == RELOAD and ("origin" in headers or not is_loopback(address)):
            raise Refusal(403, "key_needed", "observed no key set; allowed: reload from this machine; next: set a key")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), (self._key or "").encode())
        if scheme.lower() != "bearer" or not is_right:
            observed = "no key" if not given else "a wrong key"
            raise Refusal(
                401, "invalid_api_key",
                f"observed {observed}; allowed: Authorization: Bearer KEY; next: send the server's key",
            )  # fmt: skip

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None when the client left."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._limits.body_bytes:
                        text = f"observed a larger body; allowed: {self._limits.body_bytes} bytes; next: send less text"
                        raise Refusal(413, "body_too_large", text)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            text = (
                f"observed no end of the body in {self._limits.body_seconds:g} s; allowed: less; next: send it at once"
            )
            raise Refusal(408, "body_timeout", text) from None

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, sent: _Sent) -> None:
        """Runs the application until it is done or the client has left."""
        unread = [body]

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await asyncio.Future[Message]()  # leaving is noticed below

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(scope, replay, sent.send))
        leaving = asyncio.ensure_future(leave())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or sent.is_complete:
                await work
        finally:
            work.cancel()
            leaving.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)


class _Sent:
    """Passes messages on and remembers what has gone out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.is_complete = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
