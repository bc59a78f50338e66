"""Who generates now and who waits: a few worker threads, a line of bounded length, and work that stops when left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from slimtts.serving.limits import ServingLimits
from slimtts.serving.numbers import ServingNumbers
from slimtts.serving.refusals import Refusal
from slimtts.speech import SpeechPiece

RETRY_AFTER_S = 1.0
# Makes speech; asks its argument at each code whether anybody still wants it.
Speak = Callable[[Callable[[], bool]], Iterable[SpeechPiece]]


class SpeechDesk:
    """Runs `concurrent` generations at once, in the order of arrival; belongs to one event loop."""

    def __init__(self, limits: ServingLimits, numbers: ServingNumbers) -> None:
        self._limits, self._numbers = limits, numbers
        self._pool = ThreadPoolExecutor(limits.concurrent, "speech")
        self._accepted, self._closed = 0, threading.Event()

    @property
    def has_room(self) -> bool:
        """Would another call be accepted?"""
        return self._accepted < self._limits.concurrent + self._limits.waiting

    async def pieces(self, speak: Speak) -> AsyncGenerator[SpeechPiece, None]:
        """What `speak` makes in a worker thread, as it is made. Leaving the loop stops the generation.

        Raises:
            Refusal: too many calls wait already.
        """
        if not self.has_room:
            raise Refusal(
                429, "too_many_calls", f"observed {self._accepted} calls at once; allowed: no more; next: try again",
                retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        loop, arrived, left = asyncio.get_running_loop(), asyncio.Queue[SpeechPiece | None](), threading.Event()

        def produce() -> None:
            for piece in speak(lambda: not (left.is_set() or self._closed.is_set())):
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        def finished() -> None:
            self._accepted -= 1
            self._numbers.in_flight.set(self._accepted)
            arrived.put_nowait(None)

        self._accepted += 1
        self._numbers.in_flight.set(self._accepted)
        work = self._pool.submit(produce)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(finished))
        try:
            while (piece := await arrived.get()) is not None:
                yield piece
            work.result()  # raises what went wrong
        finally:
            left.set()
            work.cancel()  # if it still waits

    def close(self) -> None:
        """Stops what is still generating; waits for the threads."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
