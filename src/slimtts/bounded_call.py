"""A call that may hang or take all memory, in a fork of this process that is ended when it does.

For work on strangers' files that can neither be foreseen nor interrupted: templates, patterns of tokenizers. The fork
shares everything that is loaded and starts at once; the work must not use torch, whose threads it does not have.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError

CPU_S, WALL_S = 10, 60  # of the work; the longer one counts on a busy machine
MEMORY_BYTES = 256 << 20  # beyond what the process has
LARGEST_ANSWER_BYTES = 1 << 20
NEXT = "copy the file again, from its makers"


def bounded_call(what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON gives it back.

    Raises:
        InvalidInputError: it raised, took more than `CPU_S` or `MEMORY_BYTES`, or answered with more than fits.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _answer(work, writer)
    os.close(writer)
    try:
        raw = _read(reader)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    if raw is None or not raw.endswith(b"}"):
        bounds = f"{CPU_S} s, {MEMORY_BYTES >> 20} MiB of memory and {LARGEST_ANSWER_BYTES >> 20} MiB of text"
        raise InvalidInputError(what, "work without end", f"at most {bounds}", NEXT)
    answer = json.loads(raw)
    if "error" in answer:
        raise InvalidInputError(what, answer["error"], "a file that works", NEXT)
    return answer["value"]


def _answer(work: Callable[[], Any], writer: int) -> None:
    """The fork: never returns."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library that aborts writes there
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not here
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        statm = Path("/proc/self/statm")
        if statm.is_file():
            present = int(statm.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY_BYTES, present + MEMORY_BYTES))
        try:
            answer = json.dumps({"value": work()}).encode()
        except MemoryError:
            return  # no answer is the answer
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            answer = json.dumps({"error": reason}).encode()
        if len(answer) <= LARGEST_ANSWER_BYTES:
            while answer:
                answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _read(reader: int) -> bytes | None:
    """All that is written until the end; None when it does not come in time."""
    parts: list[bytes] = []
    deadline = time.monotonic() + WALL_S
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(reader, 1 << 16)
                if not part:
                    return b"".join(parts)
                parts.append(part)
    return None
