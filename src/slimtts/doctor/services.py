"""Which servers answer: only those that the environment names, all asked at once, never with a key or password."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from slimtts.doctor.finding import Finding

TOPIC = "Servers"
TIMEOUT_S = 1.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


@dataclass(frozen=True)
class Service:
    """A server, the variables that name its address, what is asked of it, and what holds without it."""

    name: str
    variables: tuple[str, ...]
    path: str
    without: str


SERVICES = (
    Service("MLflow", ("MLFLOW_TRACKING_URI",), "/health", "runs keep their numbers in runs/mlflow.db"),
    Service("Prefect", ("PREFECT_API_URL",), "/health", "each run starts a server of its own"),
    Service(
        "S3", ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "/", "storage stays on this disk, unless it is AWS's own"
    ),
    Service("model hub", ("HF_ENDPOINT",), "/", "not asked; models in the cache open without it"),
)


def service_findings(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """One a service, within little more than `TIMEOUT_S`, also where a name cannot be looked up."""
    answers: dict[str, Finding] = {}
    threads = []
    for service in SERVICES:
        thread = threading.Thread(
            target=lambda s=service: answers.__setitem__(s.name, look_at(s, environment)), daemon=True
        )
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(2 * TIMEOUT_S)
    silent = "did not answer in time"
    return [answers.get(s.name, Finding(TOPIC, s.name, "missing", silent, _mend(s, environment))) for s in SERVICES]


def look_at(service: Service, environment: Mapping[str, str]) -> Finding:
    """Whether the address that the environment gives to a service answers."""
    address = next((environment[name] for name in service.variables if environment.get(name)), "")
    if not address:
        return Finding(TOPIC, service.name, "off", f"{service.variables[-1]} is not set: {service.without}")
    try:
        parts = urlsplit(address)
        shown = without_secrets(parts)
    except ValueError:
        return Finding(TOPIC, service.name, "missing", "an address that cannot be read", _mend(service, environment))
    if not parts.hostname:
        local = Path(parts.path.removeprefix("/") if parts.scheme.startswith("sqlite") else parts.path)
        state = "there" if local.exists() else "made at first use"
        return Finding(TOPIC, service.name, "ok", f"{parts.scheme or 'file'} {local}: {state}")
    try:
        told = _ask(parts, service.path, environment.get("AWS_CA_BUNDLE") or None)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (
            type(error).__name__ if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
        )
        return Finding(TOPIC, service.name, "missing", f"{shown}: {reason}", _mend(service, environment))
    return Finding(TOPIC, service.name, "ok", f"{shown}: {told}")


def without_secrets(parts: SplitResult) -> str:
    """Scheme, host and port: users, passwords, paths and queries stay out."""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def _ask(parts: SplitResult, path: str, certificates: str | None) -> str:
    scheme = parts.scheme.split("+")[0]
    host, port = parts.hostname or "", parts.port or PORTS.get(scheme, 443)
    if scheme not in ("http", "https"):
        with socket.create_connection((host, port), TIMEOUT_S):
            return "answers"
    connection: http.client.HTTPConnection
    if scheme == "https":
        trusted = ssl.create_default_context(cafile=certificates)
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=trusted)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        status = connection.getresponse().status
    finally:
        connection.close()
    return f"answers{'' if status < 300 else f' ({status} to somebody without a name)'}"


def _mend(service: Service, environment: Mapping[str, str]) -> str:
    name = next((name for name in service.variables if environment.get(name)), service.variables[-1])
    return f"start it, or correct or unset {name}"
