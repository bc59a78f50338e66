"""Starts services in order, waits until each is healthy, restarts those that die, and stops all in reverse."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.stack import leash
from infra.stack.credentials import make_credentials
from infra.stack.layout import Layout, write_state
from infra.stack.postgres import make_programs_reachable
from infra.stack.services import Service, all_services
from slimtts.errors import InvalidInputError, SlimttsError
from tasks.locks import exclusive_lock

TICK_S = 0.2
HEALTHY_WITHIN_S = 180.0
FIRST_STARTS = 3  # deaths before a service was ever healthy, then it is given up
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
STEADY_S = 60.0  # after so long without a death the back-off starts anew
LOG_BYTES = 20_000_000
logger = logging.getLogger("infra.stack")


@dataclasses.dataclass
class Run:
    """A service and what has become of it."""

    service: Service
    process: subprocess.Popen[bytes] | None = None
    completed: bool = False  # was healthy once since the stack started, and `complete` is done
    healthy: bool = False  # since its last start
    held: bool = False
    restarts: int = 0  # after it died; a held service that is released has not
    quick_deaths: int = 0
    started_at: float = 0.0
    start_after: float = 0.0

    def facts(self) -> dict[str, object]:
        """For the state file."""
        state = "held" if self.held else "healthy" if self.healthy else "starting" if self.process else "down"
        pid = self.process.pid if self.process else None
        return {"state": state, "pid": pid, "restarts": self.restarts}


def supervise(layout: Layout) -> None:
    """Runs the stack until SIGINT or SIGTERM; returns when all has stopped.

    Raises:
        InvalidInputError: another stack runs in the folder, or a port is taken.
        SlimttsError: a service did not start; the message ends with the last line of its log.
    """
    layout.folder.mkdir(parents=True, exist_ok=True)
    layout.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # root's PostgreSQL runs as another user
    with _only_one(layout):
        layout.ports.refuse_taken()
        for folder in (layout.logs, layout.folder / "hold"):
            folder.mkdir(mode=0o700, exist_ok=True)
        for hold in (layout.folder / "hold").iterdir():
            hold.unlink()
        make_programs_reachable(layout)
        services = all_services(layout, make_credentials(layout.secrets), logger)
        with stop_signals() as stopped:
            Supervisor(layout, services).run(stopped)


class Supervisor:
    """One loop over all services; nothing else starts or stops them."""

    def __init__(self, layout: Layout, services: Sequence[Service]) -> None:
        self._layout = layout
        self._runs = [Run(service) for service in services]
        self._told: list[dict[str, object]] = []

    def run(self, stopped: list[int]) -> None:
        """Until `stopped` is no longer empty."""
        began, all_healthy = time.monotonic(), False
        try:
            for run in self._runs:
                run.service.prepare()
            while not stopped:
                for run in self._runs:
                    self._look_after(run)
                if not all_healthy and all(run.completed for run in self._runs):
                    all_healthy = True
                    addresses = f"MLflow {self._layout.url('mlflow')}, Prefect {self._layout.url('prefect')}"
                    logger.info("all healthy after %.1f s: %s", time.monotonic() - began, addresses)
                self._tell(all_healthy)
                time.sleep(TICK_S)
        finally:
            for wave in sorted({run.service.wave for run in self._runs}, reverse=True):
                self._stop(*(run for run in self._runs if run.service.wave == wave))
            self._layout.state.unlink(missing_ok=True)
            logger.info("stopped")

    def _look_after(self, run: Run) -> None:
        service, now = run.service, time.monotonic()
        held = self._layout.hold(service.name).exists()
        if held != run.held:
            run.held = held
            logger.info("%s: %s", service.name, "held" if held else "released")
            self._stop(run)
            run.start_after = 0.0
        if run.held:
            return
        if run.process is not None and run.process.poll() is not None:
            self._bury(run)
        if run.process is None:
            ready = all(other.completed for other in self._runs if other.service.wave < service.wave)
            if ready and now >= run.start_after:
                self._start(run)
            return
        if not run.healthy:
            run.healthy = service.healthy()
            if run.healthy and not run.completed:
                service.complete()
                run.completed = True
            if run.healthy:
                logger.info("%s: healthy after %.1f s", service.name, time.monotonic() - run.started_at)
            elif now - run.started_at > HEALTHY_WITHIN_S:
                self._stop(run)
                self._bury(run)

    def _start(self, run: Run) -> None:
        service = run.service
        run.process = subprocess.Popen(
            [sys.executable, "-I", leash.__file__, str(os.getpid()), service.user, str(int(service.stop_signal)),
             str(service.grace_s), *service.command],
            env=dict(service.environment), cwd="/" if service.user else self._layout.folder,
            stdin=subprocess.DEVNULL, stdout=self._log(service), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        run.started_at, run.healthy = time.monotonic(), False

    def _bury(self, run: Run) -> None:
        """Decides when a dead service starts again, or that it never will."""
        lived_s = time.monotonic() - run.started_at
        code = run.process.returncode if run.process else None
        run.quick_deaths = 1 if run.healthy and lived_s > STEADY_S else run.quick_deaths + 1
        run.process, run.healthy = None, False
        run.restarts += 1
        if not run.completed and run.quick_deaths >= FIRST_STARTS:
            log = self._log_path(run.service)
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise SlimttsError(
                f"{run.service.name}: observed {run.quick_deaths} starts without health, the last with code {code} "
                f"({' '.join(last)}); next: read {log}"
            )
        pause_s = BACK_OFF_S[min(run.quick_deaths, len(BACK_OFF_S)) - 1]
        run.start_after = time.monotonic() + pause_s
        logger.warning("%s: ended with code %s, starts again in %g s", run.service.name, code, pause_s)

    def _stop(self, *runs: Run) -> None:
        """Asks all, then waits for each; a leash lets none stay longer than its grace."""
        leashes = [run.process for run in runs if run.process is not None]
        for leash_process in leashes:
            leash_process.terminate()
        for leash_process in leashes:
            leash_process.wait()
        for run in runs:
            run.process, run.healthy = None, False

    def _log_path(self, service: Service) -> Path:
        return self._layout.logs / f"{service.name}.log"

    def _log(self, service: Service) -> int:
        """Descriptor of the service's log, which begins anew when it has become long; the former one is kept."""
        path = self._log_path(service)
        if path.is_file() and path.stat().st_size > LOG_BYTES:
            path.rename(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _tell(self, all_healthy: bool) -> None:
        facts = [run.facts() for run in self._runs]
        if facts != self._told or not self._layout.state.exists():
            named = {run.service.name: fact for run, fact in zip(self._runs, facts, strict=True)}
            write_state(self._layout, named, all_healthy)
            self._told = facts


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    lock = exclusive_lock(layout.folder / ".stack.lock")
    try:
        lock.__enter__()
    except InvalidInputError:
        raise InvalidInputError(
            str(layout.folder), "a stack that runs here", "one a folder", "make stack-stop, or another --folder"
        ) from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM, so that a stop never tears a step in two."""
    received: list[int] = []
    former = {
        number: signal.signal(number, lambda got, _frame: received.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, action in former.items():
            signal.signal(number, action)
