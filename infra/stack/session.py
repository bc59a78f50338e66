"""A stack that another process runs: started in the background, watched, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.stack.credentials import Credentials, read_credentials
from infra.stack.layout import Layout, Ports, read_state
from slimtts.errors import InvalidInputError, SlimttsError

CHECKOUT = Path(__file__).resolve().parents[2]
POLL_S = 0.1
START_WITHIN_S = 240.0
STOP_WITHIN_S = 90.0


@dataclass(frozen=True)
class Stack:
    """A running stack, by its folder."""

    layout: Layout

    @property
    def credentials(self) -> Credentials:
        """Its passwords."""
        return read_credentials(self.layout.secrets)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment: addresses and passwords."""
        return self.layout.client_environment(self.credentials)

    def state(self) -> dict[str, Any]:
        """What the supervisor last said; empty once it has stopped."""
        return read_state(self.layout.folder)

    def facts(self, service: str) -> dict[str, Any]:
        """`state` (healthy, starting, down, held), `pid` of the leash, number of `restarts`."""
        return self.state()["services"][service]

    def processes(self, service: str) -> list[psutil.Process]:
        """The service's own processes, the first one first."""
        pid = self.facts(service)["pid"]
        return psutil.Process(pid).children(recursive=True) if pid else []

    def kill(self, service: str) -> None:
        """SIGKILL to the service's first process; the supervisor starts it again."""
        os.kill(self.processes(service)[0].pid, signal.SIGKILL)

    def hold(self, service: str) -> None:
        """Stops one service until it is released; returns when it is gone."""
        self._check(service)
        self.layout.hold(service).touch()
        self._until(lambda: self.facts(service)["state"] == "held", f"{service} held", STOP_WITHIN_S)

    def release(self, service: str) -> None:
        """Starts a held service; returns when it is healthy."""
        self._check(service)
        self.layout.hold(service).unlink(missing_ok=True)
        self.wait_healthy(service)

    def wait_healthy(self, service: str, restarts: int = 0) -> None:
        """Returns when the service is healthy and has been restarted at least so many times."""
        self._until(
            lambda: self.facts(service)["state"] == "healthy" and self.facts(service)["restarts"] >= restarts,
            f"{service} healthy",
            START_WITHIN_S,
        )

    def stop(self) -> None:
        """Stops everything; returns when nothing runs any more."""
        supervisor = _supervisor(self.state())
        if supervisor is not None:
            supervisor.terminate()
            supervisor.wait(STOP_WITHIN_S)

    def _check(self, service: str) -> None:
        known = self.state()["services"]
        if service not in known:
            raise InvalidInputError("service", repr(service), ", ".join(known), "choose one of these")

    def _until(self, reached: Callable[[], bool], what: str, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not reached():
            if time.monotonic() > deadline:
                raise SlimttsError(f"{what}: observed not so after {within_s:g} s; next: read {self.layout.logs}")
            time.sleep(POLL_S)


def find_stack(folder: Path) -> Stack:
    """The stack that runs in `folder`.

    Raises:
        InvalidInputError: none does.
    """
    state: dict[str, Any] = read_state(folder)
    if _supervisor(state) is None:
        raise InvalidInputError(str(folder), "no stack that runs here", "a running stack", "make stack")
    return Stack(Layout(folder, Ports(**state["ports"])))


def start_stack(layout: Layout) -> Stack:
    """Starts a stack in the background; returns when all of it is healthy.

    Raises:
        SlimttsError: it did not come up; the message is the supervisor's.
    """
    layout.folder.mkdir(parents=True, exist_ok=True)
    output = layout.folder / "supervisor.log"
    ports = layout.ports
    options = [f"--{name}-port={getattr(ports, name)}" for name in ("postgres", "s3", "mlflow", "prefect", "worker")]
    with output.open("w") as stream:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "infra.stack", "up", "--folder", str(layout.folder.resolve()), *options],
            cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + START_WITHIN_S
    while True:
        state: dict[str, Any] = read_state(layout.folder)
        if state.get("pid") == supervisor.pid and state["healthy"]:
            return Stack(layout)
        if supervisor.poll() is not None:
            last = output.read_text().strip().splitlines()[-1:]
            raise SlimttsError(f"stack in {layout.folder}: {' '.join(last).removeprefix('slimtts: ')}")
        if time.monotonic() > deadline:
            supervisor.terminate()
            supervisor.wait(STOP_WITHIN_S)
            raise SlimttsError(
                f"stack in {layout.folder}: observed not healthy after {START_WITHIN_S:g} s; read {output}"
            )
        time.sleep(POLL_S)


@contextmanager
def running_stack(layout: Layout) -> Iterator[Stack]:
    """A stack for the length of the block."""
    stack = start_stack(layout)
    try:
        yield stack
    finally:
        stack.stop()


def _supervisor(state: Mapping[str, Any]) -> psutil.Process | None:
    """The process that wrote the state, if it still lives."""
    try:
        process = psutil.Process(state["pid"])
    except (KeyError, psutil.NoSuchProcess):
        return None
    return process if process.create_time() == state["started_at"] else None
