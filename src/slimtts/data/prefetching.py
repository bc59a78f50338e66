"""Makes the next items in a thread while the present one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items in the same order, made by one thread up to `depth` ahead.

    What making an item raises is raised where that item would have been.
    """
    thread = ThreadPoolExecutor(1, "prefetch")
    end = object()
    try:
        coming: deque[Future[Item | object]] = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)
