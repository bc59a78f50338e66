"""Who has the device: one stage at a time on each, across all runs of a machine; in a fleet, as many as it has."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tasks.locks import exclusive_lock

GPU_LIMIT = "gpu"  # Prefect's global concurrency limit: as many slots as the fleet has devices
LEASE_S = 60.0  # a slot whose holder was killed is free after this; the default of 300 s would idle the device
Logger = logging.Logger | logging.LoggerAdapter[Any]


@contextmanager
def owned_devices(runs_root: Path, stage: str, logger: Logger) -> Iterator[None]:
    """Holds the devices of this process while the block runs; waits for them.

    The locks are files, which the kernel frees when their holder dies. A worker that was given its devices by
    CUDA_VISIBLE_DEVICES shares the machine with workers of other devices, and takes a slot of Prefect's limit for
    each; where the server has no such limit, Prefect says so in the log and goes on.
    """
    from prefect.concurrency.sync import concurrency

    devices = visible_devices()
    locks = [f".device-{re.sub(r'[^A-Za-z0-9-]', '-', device)}.lock" for device in devices] or [".device.lock"]
    with ExitStack() as held:
        for lock in locks:
            on_wait = partial(logger.info, "%s: waits for the run that holds %s", stage, lock)
            held.enter_context(exclusive_lock(runs_root / lock, on_wait))
        if devices:
            held.enter_context(concurrency(GPU_LIMIT, occupy=len(devices), lease_duration=LEASE_S))
        yield


def visible_devices() -> list[str]:
    """The devices that CUDA_VISIBLE_DEVICES gives to this process, sorted; none when it is not set or hides all."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return sorted({device.strip() for device in given} - {"", "-1"})
