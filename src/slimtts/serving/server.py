"""`slimtts serve`: loads the model, listens, and ends in order on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from typing import cast

import uvicorn

from slimtts.errors import InvalidInputError
from slimtts.redaction import RedactingFormatter
from slimtts.serving.app import SpeechServer
from slimtts.serving.connections import BoundedConnection
from slimtts.serving.limits import ServingLimits
from slimtts.serving.live_model import LiveModel
from slimtts.serving.model_source import KEY_VARIABLE, Fetch
from slimtts.serving.request_head import LARGEST_HEAD_BYTES, is_loopback

logger = logging.getLogger(__name__)

SHORTEST_KEY = 16  # characters


def api_key_for(host: str) -> str | None:
    """The key of the environment; None when there is none and only this machine can ask.

    Raises:
        InvalidInputError: a short key, or none for an address that others can reach.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and (len(key) < SHORTEST_KEY or not key.isascii()):
        raise InvalidInputError(
            KEY_VARIABLE, f"{len(key)} characters", f"at least {SHORTEST_KEY} of ASCII", "use `openssl rand -hex 32`"
        )
    if not key and not is_loopback(host):
        raise InvalidInputError(
            "--host", host, f"127.0.0.1, or any address with {KEY_VARIABLE} in the environment", "set a key"
        )
    return key or None


def serve(fetch: Fetch, host: str, port: int, limits: ServingLimits, follow_s: float = 0.0) -> None:
    """Serves until SIGTERM or Ctrl-C; calls in flight then get `limits.drain_seconds` to finish.

    Raises:
        SlimttsError: no key where one is needed, or no model that speaks.
    """
    api_key = api_key_for(host)
    _log_to_stdout()
    live = LiveModel(fetch)
    model = live.take_up().model
    logger.info("model %s, version %s, voices: %s", model.id, model.files.version, ", ".join(model.speaker.voices))
    config = uvicorn.Config(
        SpeechServer(live, limits, api_key, follow_s).asgi, host=host, port=port, lifespan="on",
        http=cast("type[asyncio.Protocol]", partial(BoundedConnection, limits)), ws="none", log_config=None,
        access_log=False, server_header=False,
        h11_max_incomplete_event_size=LARGEST_HEAD_BYTES, timeout_graceful_shutdown=int(limits.drain_seconds),
    )  # fmt: skip
    # uvicorn ends in order, then raises the signal again: an ordered end is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.Server(config).run()


def _log_to_stdout() -> None:
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    for name in ("slimtts", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
