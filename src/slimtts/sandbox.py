"""Native parsers of strangers' bytes run in a child process: when one crashes, hangs or wants memory, only it dies.

A child serves many calls, one after the other, and is started again after its death. A call names a function of a
module; arguments and answers are JSON and plain bytes in frames of stated length, never pickles. The kernel holds the
limits: RLIMIT_DATA for memory (files that are mapped for reading do not count), an alarm for time.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Buffer = bytes | bytearray | memoryview
MEMORY_LIMIT_BYTES = 896 << 20  # of data: with the code of pyarrow below 1 GiB
TIME_LIMIT_S = 60.0
MAX_JSON_BYTES, MAX_CONTENT_BYTES = 32 << 20, 256 << 20
_FRAME = struct.Struct("<QQ")  # bytes of JSON, bytes beside it
_GRACE_S = 5.0  # the child's own alarm comes first
# No secret reaches the child: of the environment only what an interpreter needs to start.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
_QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}


class Refusal(Exception):
    """What a parser says about bytes that it does not take; `reason` is a name to count it by."""

    def __init__(self, observed: str, allowed: str = "", next_step: str = "", reason: str = "unreadable") -> None:
        super().__init__(observed)
        self.observed, self.allowed, self.next_step, self.reason = observed, allowed, next_step, reason


@dataclass(frozen=True)
class Answer:
    """What a call gave: JSON values, bytes beside them, and how long the JSON was."""

    values: dict[str, Any]
    content: Buffer = b""
    json_bytes: int = 0


class Sandbox:
    """A child process that calls functions of `module`: `function(arguments, content) -> (values, content)`."""

    def __init__(
        self, module: str, memory_limit_bytes: int = MEMORY_LIMIT_BYTES, time_limit_s: float = TIME_LIMIT_S
    ) -> None:
        self._module, self._memory_limit_bytes, self._time_limit_s = module, memory_limit_bytes, time_limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    def call(self, function: str, arguments: Mapping[str, Any], content: Buffer = b"") -> Answer:
        """The function's answer.

        Raises:
            Refusal: the function refuses the bytes, or the child died of them.
        """
        with self._lock:
            process = self._running()
            try:
                _write_frame(process.stdin, {"function": function, "arguments": dict(arguments)}, content)
                answer = _read_frame(process.stdout, time.monotonic() + self._time_limit_s + _GRACE_S)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                raise self._death(process, error) from None
            except BaseException:  # interrupted in the middle of a frame: the next call needs a fresh child
                self._forget()
                raise
        if "refused" in answer.values:
            raise Refusal(**{key: str(value)[:500] for key, value in answer.values["refused"].items()})
        return answer

    def close(self) -> None:
        """Ends the child; a later call starts another."""
        with self._lock:
            self._forget()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():  # after a fork the child belongs to the other side
            self._owner, self._process = os.getpid(), None
        if self._process is None or self._process.poll() is not None:
            source = f"from slimtts.sandbox import serve; serve({self._module!r}, {self._memory_limit_bytes}, "
            command = [sys.executable, "-P", "-c", f"{source}{self._time_limit_s!r})"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
            )
            weakref.finalize(self, _end, self._process, os.getpid())
        return self._process

    def _forget(self) -> None:
        if self._process is not None:
            _end(self._process, self._owner)
            self._process = None

    def _death(self, process: subprocess.Popen[bytes], error: Exception) -> Refusal:
        """Why the child gave no answer."""
        if not isinstance(error, TimeoutError | ValueError):
            try:
                code = process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                code = 0
        else:
            code = -signal.SIGALRM if isinstance(error, TimeoutError) else 0
        self._forget()
        if code == -signal.SIGALRM:
            return Refusal(f"not read after {self._time_limit_s:.0f} s", reason="unreadable")
        if code < 0:
            name = signal.Signals(-code).name
            return Refusal(f"the parser died of it ({name})", reason="unreadable")
        return Refusal(f"the parser gave no answer ({error or type(error).__name__})", reason="unreadable")


@cache
def shared_sandbox(module: str) -> Sandbox:
    """This process's one child for the parsers of a module: to start it costs as much as some hundred calls."""
    return Sandbox(module)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # unsent bytes of a dead child
                continue


def _environment() -> dict[str, str]:
    here = str(Path(__file__).parents[1])
    paths = [here, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return given | _QUIET | {"PYTHONPATH": os.pathsep.join(paths)}


def _write_frame(stream: Any, values: Mapping[str, Any], content: Buffer) -> None:
    packed = json.dumps(values).encode()
    stream.write(_FRAME.pack(len(packed), len(content)))
    stream.write(packed)
    stream.write(content)
    stream.flush()


def _read_frame(stream: Any, deadline: float) -> Answer:
    """From an unbuffered or untouched pipe; nothing of what comes is trusted before its length is checked."""
    descriptor = stream.fileno()

    def exactly(count: int) -> bytearray:
        block, filled = bytearray(count), 0
        view = memoryview(block)
        while filled < count:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            got = os.readv(descriptor, [view[filled : filled + (1 << 20)]])
            if not got:
                raise EOFError
            filled += got
        return block

    json_bytes, content_bytes = _FRAME.unpack(exactly(_FRAME.size))
    if json_bytes > MAX_JSON_BYTES or content_bytes > MAX_CONTENT_BYTES:
        raise ValueError(f"an answer of {json_bytes + content_bytes} bytes")
    values = json.loads(exactly(json_bytes))
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return Answer(values, exactly(content_bytes), json_bytes)


def serve(module: str, memory_limit_bytes: int, time_limit_s: float) -> None:
    """The child: answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is the parent's to answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a parser that prints must not answer
    parsers = importlib.import_module(module)
    for limit, value in ((resource.RLIMIT_DATA, memory_limit_bytes), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):  # a system without this limit keeps the one of time
            continue
    while head := sys.stdin.buffer.read(_FRAME.size):
        json_bytes, content_bytes = _FRAME.unpack(head)
        request = json.loads(sys.stdin.buffer.read(json_bytes))
        content = sys.stdin.buffer.read(content_bytes)
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)  # its default action ends the process, whatever it does
        values, beside = _answer(getattr(parsers, request["function"]), request["arguments"], content)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write_frame(answers, values, beside)


def _answer(function: Any, arguments: dict[str, Any], content: bytes) -> tuple[dict[str, Any], Buffer]:
    try:
        values, beside = function(arguments, content)
        return values, beside
    except Refusal as refusal:
        return {"refused": vars(refusal)}, b""
    except MemoryError:
        return {"refused": {"observed": "more memory wanted than a parser may take", "reason": "unreadable"}}, b""
    except Exception as error:  # whatever a library raises over damaged bytes
        lines = str(error).strip().splitlines() or [""]
        return {"refused": {"observed": f"{type(error).__name__}: {lines[0]}"}}, b""
