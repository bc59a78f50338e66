"""A real tiny speaker for content, a scripted one for order and time, and requests without a socket."""

import asyncio
import dataclasses
import json
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from slimtts.params import DecodingParams
from slimtts.serving.app import SpeechServer
from slimtts.serving.limits import ServingLimits
from slimtts.serving.live_model import ServedModel
from slimtts.serving.model_source import ModelFiles
from slimtts.speech import Speaker, SpeechPiece
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import BeepCodec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for a successor of httpx that nothing else here needs
    from starlette.testclient import TestClient

SPEECH = "/v1/audio/speech"


class WindowedBeep(BeepCodec):
    samples_per_frame, context_frames = 640, 2


@pytest.fixture(scope="session")
def speaker(teacher):
    model = dataclasses.replace(teacher, codec=WindowedBeep())
    voices = {"anna": Prompt("so it is.", (1, 2, 3)), "bea": Prompt("yes.", (5, 6))}
    return Speaker(model, voices, DecodingParams(temperature=1, top_p=1, max_new_tokens=30, batch_rows=1, seed=0))


class ScriptedSpeaker:
    """A piece, then one for each release of `go`; counts how many it made, and asks before each."""

    sample_rate_hz, voices = 16_000, {}

    def __init__(self, pieces=5, go=True):
        self.pieces, self.made, self.ended = pieces, 0, threading.Event()
        self.go = threading.Semaphore(10_000 if go else 1)

    def stream(self, text, voice=None, is_wanted=lambda: True):
        return self._stream(is_wanted)

    def _stream(self, is_wanted):
        try:
            while self.made < self.pieces and is_wanted():
                if self.go.acquire(timeout=0.02):
                    self.made += 1
                    yield SpeechPiece(np.full(160, 0.25, np.float32), 0.001)
        finally:
            self.ended.set()


@pytest.fixture
def scripted():
    return ScriptedSpeaker


def served(speaker, version="1"):
    return ServedModel(ModelFiles("toy", None, version, "run", "a" * 64), speaker, 1_000.0)


@pytest.fixture
def server_of():
    """The server of a speaker, with these limits."""

    def make(speaker, api_key=None, follow_s=0.0, take_up=None, **limits):
        live = SimpleNamespace(current=served(speaker), take_up=take_up)
        return SpeechServer(live, ServingLimits(**limits), api_key, follow_s)

    return make


@pytest.fixture
def client_of(server_of):
    def make(speaker, **how):
        return TestClient(server_of(speaker, **how).asgi, base_url="http://127.0.0.1", client=("127.0.0.1", 1))

    return make


@pytest.fixture
def ask():
    """One speech request to an ASGI application, from the inside."""
    return Call


class Call:
    """A request whose client reads what it gets and may leave; `async with` it in a running loop."""

    def __init__(self, app, body=None, path=SPEECH, headers=(), address="127.0.0.1"):
        content = json.dumps({"model": "toy", "input": "hello"} if body is None else body).encode()
        names = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), *headers]
        self._scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": names, "client": (address, 1), "server": ("127.0.0.1", 80), "scheme": "http",
            "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        self._app, self._unread = app, [{"type": "http.request", "body": content, "more_body": False}]
        self._left, self.status, self.content, self.is_complete = asyncio.Event(), None, b"", False
        self.got_audio = asyncio.Event()

    async def receive(self):
        if self._unread:
            return self._unread.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.status = message.get("status", self.status)
        self.content += message.get("body", b"")
        if len(self.content) > 44:
            self.got_audio.set()
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
            self._left.set()  # as uvicorn does

    def leave(self):
        self._left.set()

    async def run(self):
        await self._app(self._scope, self.receive, self.send)
        return self
