"""Prefect's temporary server, for flows started from a terminal: it hears no Ctrl-C and ends with the flow's process.

Prefect starts one itself where PREFECT_API_URL is not set, in the terminal's process group: Ctrl-C ended it before the
flow could say how it ended, and `kill -9` of the flow left it running.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import httpx
import prefect
from prefect.logging import get_logger
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from slimtts.errors import InvalidInputError, SlimttsError
from tasks.locks import exclusive_lock
from tasks.process_group import supervised
from tasks.service_checks import check_answer

FIRST_START = ".slimtts-server.lock"
GRACE_S = 4  # to write what it holds; Prefect's client waits 5 s for its end
ATTEMPTS = 3  # another process may have taken the port, or have been migrating the same database
POLL_S, ANSWER_S = 0.1, 5.0


class OwnServer(SubprocessASGIServer):
    """Prefect's own client takes it for the one that it would have started."""

    server_process: subprocess.Popen[Any] | None

    def start(self, timeout: int | None = None) -> None:
        """Starts it and waits until it answers; nothing when it runs.

        Raises:
            InvalidInputError: Prefect's folder cannot be written.
            SlimttsError: it ended, or did not answer in time.
        """
        if self.running:
            return
        settings = get_current_settings()
        get_logger().info("starts Prefect's temporary server; the first start on a machine takes longer")
        try:
            # Two first starts would both migrate one database: the later would fail.
            with exclusive_lock(settings.home / FIRST_START, on_wait=lambda: None):
                self._start(timeout or settings.server.ephemeral.startup_timeout_seconds)
        except OSError as error:
            raise InvalidInputError(
                f"PREFECT_HOME {settings.home}", error.strerror or str(error), "a folder that can be written",
                "set PREFECT_HOME to one",
            ) from None  # fmt: skip

    def _start(self, timeout_s: float) -> None:
        for _ in range(ATTEMPTS):
            self.port = free_port()
            with tempfile.TemporaryFile("w+") as output:
                self.server_process: subprocess.Popen[Any] | None = self._launch(self.port, output)
                try:
                    ended = self._wait(timeout_s)
                except BaseException:
                    self.stop()
                    raise
                if not ended:
                    self.running = True
                    atexit.register(self.stop)
                    return
                output.seek(0)
                last = next((line.strip() for line in reversed(output.readlines()) if line.strip()), "no message")
            self.server_process = None
        raise SlimttsError(
            f"Prefect's temporary server: observed {last}; allowed: a start; "
            f"next: mend it, or set PREFECT_HOME to an empty folder (now {get_current_settings().home})"
        )

    def _launch(self, port: int, output: IO[str]) -> subprocess.Popen[Any]:
        command = [
            sys.executable, "-m", "uvicorn", "--app-dir", str(Path(prefect.__file__).parent),
            "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port),
            "--log-level", "error", "--lifespan", "on", "--timeout-graceful-shutdown", str(GRACE_S - 2),
        ]  # fmt: skip
        environment = {
            **os.environ, **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1",
        }  # fmt: skip
        return subprocess.Popen(
            supervised(command, GRACE_S), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip

    def _wait(self, timeout_s: float) -> bool:
        """True when the server has ended, False when it answers."""
        assert self.server_process is not None  # noqa: S101 - just started, said for the type checker
        deadline = time.monotonic() + timeout_s
        with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
            while self.server_process.poll() is None:
                try:
                    if client.get(f"{self.api_url}/health").status_code < 500:
                        return False
                except httpx.TransportError:
                    pass
                if time.monotonic() > deadline:
                    raise SlimttsError(
                        f"Prefect's temporary server: observed no answer in {timeout_s:.0f} s; allowed: an answer; "
                        "next: raise PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or free the machine"
                    )
                time.sleep(POLL_S)
        return True


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server() -> None:
    """A server for the flows of this process: that of PREFECT_API_URL, which must answer, or one of its own.

    Raises:
        InvalidInputError: the server of PREFECT_API_URL does not answer, or there can be none.
        SlimttsError: its own did not start.
    """
    settings = get_current_settings()
    if settings.api.url is None:
        if not settings.server.ephemeral.enabled:
            raise InvalidInputError(
                "PREFECT_API_URL", "not set, in a profile of Prefect that starts no server", "the address of a server",
                "set it, or PREFECT_PROFILE=ephemeral",
            )  # fmt: skip
        OwnServer().start()
    else:
        check_answer("PREFECT_API_URL", settings.api.url, "/health")
