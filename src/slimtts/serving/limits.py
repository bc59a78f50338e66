"""How much one server takes on, and how often one address may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from slimtts.errors import InvalidInputError

REMEMBERED_ADDRESSES = 10_000


@dataclass(frozen=True)
class ServingLimits:
    """Every limit of `slimtts serve`; the help text of a field is its option's."""

    concurrent: int = field(default=1, metadata={"help": "calls that generate at once; more share the processor"})
    waiting: int = field(default=32, metadata={"help": "further calls that may wait; beyond, 429"})
    requests_per_minute: float = field(default=120, metadata={"help": "from one address; beyond, 429"})
    request_seconds: float = field(default=60, metadata={"help": "a call may take, waiting included; beyond, 504"})
    body_bytes: int = field(default=65_536, metadata={"help": "of a request; beyond, 413"})
    head_seconds: float = field(default=10, metadata={"help": "a client may take for its request's head; beyond, 408"})
    body_seconds: float = field(default=20, metadata={"help": "a client may take for its request's body; beyond, 408"})
    stall_seconds: float = field(default=30, metadata={"help": "a client may leave its answer unread; then it is cut"})
    connections: int = field(default=512, metadata={"help": "open at once; idle ones give way; requests beyond, 503"})
    drain_seconds: float = field(default=30, metadata={"help": "that calls get to finish after SIGTERM"})

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, least = getattr(self, limit.name), 0 if limit.name in ("waiting", "drain_seconds") else 1
            if not least <= value < float("inf"):
                raise InvalidInputError(
                    f"--{limit.name.replace('_', '-')}", value, f"at least {least}", "correct the option"
                )


class RateLimit:
    """A token bucket for each address: a minute's worth at once, then as many a second as the rate gives."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_s, self._clock = per_minute, per_minute / 60, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def wait_s(self, address: str) -> float:
        """0 when the address may ask now, and counts it; else the seconds until it may."""
        now = self._clock()
        tokens, counted_at = self._buckets.pop(address, (self._most, now))
        tokens = min(self._most, tokens + (now - counted_at) * self._per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._buckets[address] = (tokens if wait_s else tokens - 1, now)
        if len(self._buckets) > REMEMBERED_ADDRESSES:
            self._buckets.popitem(last=False)  # the one that has been silent longest
        return wait_s
