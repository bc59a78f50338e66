"""Where a stack keeps its state, which ports it takes, and what its clients must know."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack.credentials import Credentials
from slimtts.errors import InvalidInputError
from slimtts.storage import atomic_path

HOST = "127.0.0.1"
REGION = "us-east-1"
S3_SERVERS = ("s3", "s3-account", "s3-container", "s3-object")  # neighbouring ports, in this order
ARTIFACT_BUCKET = "slimtts-artifacts"  # MLflow's
DVC_BUCKET = "slimtts-dvc"
S3_KEY_ID = "slimtts:pipeline"  # Swift: account:user
MLFLOW_USER = "slimtts"
PREFECT_USER = "slimtts"
WORK_POOL = "cpu"
UNCLAIMED = (20_000, 32_000)  # Linux gives away 32768 and up
PORTS_OF_A_STACK = 8


@dataclass(frozen=True)
class Ports:
    """Ports on loopback; `s3` is followed by the three of its storage servers."""

    postgres: int = 55432
    s3: int = 9900
    mlflow: int = 5050
    prefect: int = 4300
    worker: int = 8090

    def by_service(self) -> dict[str, int]:
        """Every port that is taken, by the name of its service."""
        s3 = {name: self.s3 + offset for offset, name in enumerate(S3_SERVERS)}
        return {"postgres": self.postgres, **s3, "mlflow": self.mlflow, "prefect": self.prefect, "worker": self.worker}

    def refuse_taken(self) -> None:
        """Raises: InvalidInputError: a port is used by another process, or asked for twice."""
        ports = self.by_service()
        for name, port in ports.items():
            if list(ports.values()).count(port) > 1:
                raise InvalidInputError(
                    f"port {port}", f"wanted twice, by {name} too", "one service a port", "choose others"
                )
            if not _is_free(port):
                option = f"--{name.split('-')[0]}-port"
                raise InvalidInputError(
                    f"port {port} of {name}", "taken by another process", "a free port", f"choose another {option}"
                )


@dataclass(frozen=True)
class Layout:
    """One stack: its folder and its ports."""

    folder: Path
    ports: Ports = Ports()

    @property
    def logs(self) -> Path:
        """One file a service."""
        return self.folder / "logs"

    @property
    def secrets(self) -> Path:
        """Passwords, mode 0600."""
        return self.folder / "secrets.json"

    @property
    def state(self) -> Path:
        """What the supervisor last said of itself and its services; no secrets."""
        return self.folder / "state.json"

    def hold(self, service: str) -> Path:
        """While this file exists the supervisor keeps the service stopped."""
        return self.folder / "hold" / service

    def url(self, service: str) -> str:
        """Address of a service, for a person or a client."""
        scheme = "postgresql" if service == "postgres" else "http"
        return f"{scheme}://{HOST}:{self.ports.by_service()[service]}"

    def client_environment(self, credentials: Credentials) -> dict[str, str]:
        """What flows, DVC, MLflow and boto3 need to use this stack."""
        return {
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"{PREFECT_USER}:{credentials.prefect}",
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
            "MLFLOW_TRACKING_PASSWORD": credentials.mlflow,
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_ACCESS_KEY_ID": S3_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": credentials.s3,
            "AWS_DEFAULT_REGION": REGION,
        }


def write_state(layout: Layout, services: Mapping[str, Mapping[str, object]], healthy: bool) -> None:
    """Replaces the state file."""
    state = {
        "pid": os.getpid(),
        "started_at": psutil.Process().create_time(),  # a pid alone may be another process by now
        "healthy": healthy,
        "ports": dataclasses.asdict(layout.ports),
        "services": {name: dict(facts) for name, facts in services.items()},
    }
    with atomic_path(layout.state) as temporary:
        temporary.write_text(json.dumps(state, indent=1) + "\n")


def read_state(folder: Path) -> dict[str, object]:
    """The state file of `folder`; empty when nothing has run there."""
    path = Layout(folder).state
    return json.loads(path.read_text()) if path.is_file() else {}


def free_ports() -> Ports:
    """Ports that are free at this moment, below those that the kernel gives to connections and to port 0.

    From its range another process could be given one between this choice and the start of the service.
    """
    while True:
        first = secrets.choice(range(*UNCLAIMED, PORTS_OF_A_STACK))
        ports = Ports(first, first + 1, *range(first + 1 + len(S3_SERVERS), first + PORTS_OF_A_STACK))
        if all(_is_free(port) for port in ports.by_service().values()):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True
