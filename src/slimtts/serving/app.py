"""The endpoints: speech, the model's name and voices, health, numbers, and taking up a newer model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse

from slimtts.errors import SlimttsError
from slimtts.redaction import redacted
from slimtts.serving.gate import HEALTH, METRICS, MODELS, READY, RELOAD, SPEECH, Gate
from slimtts.serving.limits import ServingLimits
from slimtts.serving.live_model import LiveModel, Replacement, ServedModel
from slimtts.serving.numbers import ServingNumbers
from slimtts.serving.refusals import Refusal
from slimtts.serving.speech_desk import RETRY_AFTER_S, SpeechDesk
from slimtts.serving.speech_request import SpeechRequest
from slimtts.serving.waveform_bytes import pcm16, wav_header
from slimtts.speech import SpeechPiece

logger = logging.getLogger(__name__)

MOST_RELOADS = 2  # one that works, and one that will see what was promoted meanwhile


class SpeechServer:
    """The application of one live model; `asgi` is what a server runs. With `follow_s`, looks for a newer model."""

    def __init__(self, live: LiveModel, limits: ServingLimits, api_key: str | None, follow_s: float = 0.0) -> None:
        self._live, self._numbers, self._follow_s = live, ServingNumbers(), follow_s
        self._desk = SpeechDesk(limits, self._numbers)
        self._tell_model(live.current)
        self._reloads = 0
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=self._lifespan)
        app.post(SPEECH, response_model=None)(self.speech)
        app.get(MODELS)(self.models)
        app.get(HEALTH)(self.health)
        app.get(READY, response_model=None)(self.ready)
        app.get(METRICS, response_model=None)(self.metrics)
        app.post(RELOAD)(self.reload)
        app.add_exception_handler(Exception, _answer_error)
        for kind in (SlimttsError, HTTPException):
            app.add_exception_handler(kind, _answer_error)
        self.asgi = Gate(app, limits, self._numbers, api_key)

    async def speech(self, request: Request) -> StreamingResponse:
        """Audio of a text, sent while it is made."""
        start, model = time.perf_counter(), self._live.current
        asked = SpeechRequest.of_body(await request.body(), request.headers.get("content-type", ""))
        if asked.model != model.id:
            message = f"model: observed '{asked.model[:80]}'; allowed: {model.id}; next: name that"
            raise Refusal(404, "model_not_found", message, "model")
        speak = partial(model.speaker.stream, asked.input, asked.voice)
        pieces = self._desk.pieces(lambda is_wanted: speak(is_wanted=is_wanted))
        first = await anext(pieces, None)
        if first is None:
            raise Refusal(500, "no_speech", "observed a model that said nothing; next: try another text")
        rate_hz = model.speaker.sample_rate_hz
        self._numbers.first_audio_s.observe(first_audio_s := time.perf_counter() - start)

        async def body() -> AsyncIterator[bytes]:
            samples, lm_s = 0, 0.0
            if asked.response_format == "wav":
                yield wav_header(rate_hz)
            async with aclosing(_with_first(first, pieces)) as all_pieces:
                async for piece in all_pieces:
                    samples, lm_s = samples + len(piece.samples), lm_s + piece.lm_s
                    self._numbers.audio_s.inc(len(piece.samples) / rate_hz)
                    yield pcm16(piece.samples)
            audio_s = samples / rate_hz
            self._numbers.lm_rtf.observe(lm_s / audio_s)
            logger.info(
                "spoke %d characters: %.2f s of audio, the first after %.3f s, LM-RTF %.3f",
                len(asked.input), audio_s, first_audio_s, lm_s / audio_s,
            )  # fmt: skip

        kind = "audio/wav" if asked.response_format == "wav" else f"audio/pcm;rate={rate_hz}"
        return StreamingResponse(body(), media_type=kind, headers={"X-Sample-Rate-Hz": str(rate_hz)})

    async def models(self) -> dict[str, Any]:
        """The one model, in the shape of OpenAI's list."""
        model = self._live.current
        entry = {
            "id": model.id, "object": "model", "created": int(model.loaded_at_s), "owned_by": "slimtts",
            "version": model.files.version, "student_sha256": model.files.student_sha256,
            "voices": sorted(model.speaker.voices), "sample_rate_hz": model.speaker.sample_rate_hz,
        }  # fmt: skip
        return {"object": "list", "data": [entry]}

    async def health(self) -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    async def ready(self) -> Response:
        """A call would be accepted now."""
        if self._desk.has_room:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "busy"}, 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self._numbers.registry), media_type=CONTENT_TYPE_LATEST)

    async def reload(self) -> dict[str, Any]:
        """Takes up what the source names now; calls go on meanwhile."""
        if self._reloads >= MOST_RELOADS:
            message = f"observed {self._reloads} reloads at once; allowed: {MOST_RELOADS}; next: wait"
            raise Refusal(429, "too_many_reloads", message, retry_after_s=RETRY_AFTER_S)
        self._reloads += 1
        try:
            replaced = await self._take_up()
        except Refusal:
            raise
        except SlimttsError as error:
            raise Refusal(502, "reload_failed", f"{redacted(str(error))}; the former model goes on") from None
        finally:
            self._reloads -= 1
        return {
            "changed": replaced.changed, "model": replaced.model.id, "version": replaced.model.files.version,
            "former_version": replaced.former_version, "student_sha256": replaced.model.files.student_sha256,
            "seconds": round(replaced.took_s, 3),
        }  # fmt: skip

    async def _take_up(self) -> Replacement:
        outcome = "failed"
        try:
            replaced = await _in_daemon_thread(self._live.take_up)
            outcome = "changed" if replaced.changed else "same"
        finally:
            self._numbers.reloads.labels(outcome).inc()
        if replaced.changed:
            self._tell_model(replaced.model)
            logger.info(
                "model %s: version %s replaced %s after %.1f s",
                replaced.model.id, replaced.model.files.version, replaced.former_version, replaced.took_s,
            )  # fmt: skip
        return replaced

    def _tell_model(self, model: ServedModel) -> None:
        told = {"id": model.id, "version": model.files.version, "student_sha256": model.files.student_sha256}
        self._numbers.model.info({name: value or "none" for name, value in told.items()})

    async def _follow(self) -> None:
        """Looks for a newer model for ever; whatever fails, the present one goes on."""
        while True:
            await asyncio.sleep(self._follow_s)
            (outcome,) = await asyncio.gather(self._take_up(), return_exceptions=True)
            if isinstance(outcome, SlimttsError):
                logger.warning("no newer model: %s", outcome)
            elif isinstance(outcome, BaseException):
                logger.error("no newer model", exc_info=outcome)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        following = asyncio.ensure_future(self._follow()) if self._follow_s else None
        try:
            yield
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await asyncio.to_thread(self._desk.close)


async def _with_first(first: SpeechPiece, rest: AsyncGenerator[SpeechPiece, None]) -> AsyncGenerator[SpeechPiece, None]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _in_daemon_thread(work: Callable[[], Replacement]) -> Replacement:
    """As `asyncio.to_thread`, but the process need not wait for it to end: a fetch may take long."""
    done = Future[Replacement]()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # handed to whoever awaits
            done.set_exception(error)

    threading.Thread(target=run, name="take up", daemon=True).start()
    return await asyncio.wrap_future(done)


async def _answer_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        refusal = Refusal(error.status_code, "not_found" if error.status_code == 404 else "refused", str(error.detail))
    elif isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, SlimttsError):
        refusal = Refusal(400, "invalid_request", str(error))
    else:  # the server logs it
        refusal = Refusal(500, "internal_error", "observed an error of the server; next: see its log")
    return refusal.response()
