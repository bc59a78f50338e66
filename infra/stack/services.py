"""What each service of a stack is: its command, environment, port, health, and what must happen around its start."""

from __future__ import annotations

import getpass
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from infra.stack import postgres, swift
from infra.stack.credentials import Credentials
from infra.stack.layout import (
    ARTIFACT_BUCKET,
    DVC_BUCKET,
    HOST,
    MLFLOW_USER,
    PREFECT_USER,
    REGION,
    S3_KEY_ID,
    S3_SERVERS,
    WORK_POOL,
    Layout,
)
from tasks.bucket import Logger, ensure_bucket, s3_client

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_INHERITED = ("PREFECT_", "MLFLOW_", "AWS_", "PG", "S3_")  # the settings of other servers
HEALTH_TIMEOUT_S = 3.0


def _nothing() -> None:
    """For services that need no preparation."""


@dataclass(frozen=True)
class Service:
    """One supervised command. A wave starts when all services of the waves before are healthy."""

    name: str
    wave: int
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    healthy: Callable[[], bool] = field(repr=False)
    prepare: Callable[[], None] = field(repr=False, default=_nothing)  # before the first start
    complete: Callable[[], None] = field(repr=False, default=_nothing)  # once healthy, before the next wave
    user: str = ""  # "" = the present one
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0


def all_services(layout: Layout, credentials: Credentials, logger: Logger) -> list[Service]:
    """In the order in which they start."""
    return [
        _postgres(layout, credentials),
        *_s3(layout, credentials, logger),
        _mlflow(layout, credentials),
        _prefect(layout, credentials),
        _worker(layout, credentials),
    ]


def _postgres(layout: Layout, credentials: Credentials) -> Service:
    programs = postgres.programs_folder(layout)
    return Service(
        "postgres", 0, postgres.server_command(layout, programs), {"PATH": os.defpath, "LC_ALL": "C"},
        healthy=lambda: postgres.answers(layout, credentials),
        prepare=lambda: postgres.prepare_cluster(layout, credentials, programs),
        complete=lambda: postgres.ensure_databases(layout, credentials),
        user=postgres.run_as(),
        stop_signal=signal.SIGINT,  # ends sessions; SIGTERM would wait for them
    )  # fmt: skip


def _s3(layout: Layout, credentials: Credentials, logger: Logger) -> list[Service]:
    def make_buckets() -> None:
        client = s3_client(layout.url("s3"), S3_KEY_ID, credentials.s3, REGION)
        for bucket in (ARTIFACT_BUCKET, DVC_BUCKET):
            ensure_bucket(client, f"s3://{bucket}", logger)

    # The proxy, which has the address that clients know, comes last and stops first.
    names = (*reversed(S3_SERVERS), "s3-updater")
    return [
        Service(
            name, 0 if name != "s3-updater" else 1, swift.server_command(layout, name), {"PATH": os.defpath},
            healthy=_answers(f"{layout.url(name)}/healthcheck") if name in S3_SERVERS else lambda: True,
            prepare=(lambda: swift.prepare_storage(layout, credentials)) if name == names[0] else _nothing,
            complete=make_buckets if name == "s3" else _nothing,
            grace_s=5.0,
        )
        for name in names
    ]  # fmt: skip


def _mlflow(layout: Layout, credentials: Credentials) -> Service:
    # No password in an address or a command: libpq takes it from PGPASSWORD.
    database = f"postgresql+psycopg2://mlflow@{HOST}:{layout.ports.postgres}/mlflow"
    settings = layout.folder / "mlflow-auth.ini"

    def write_settings() -> None:
        settings.write_text(
            f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = {database}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 60\n"  # checking a password takes tens of milliseconds a request
        )

    clients = layout.client_environment(credentials)
    environment = {
        **_inherited(),
        **{key: value for key, value in clients.items() if key.startswith("AWS_")},
        "MLFLOW_BACKEND_STORE_URI": database,
        "PGPASSWORD": credentials.postgres_mlflow,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.mlflow,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.mlflow_cookies,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = (
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(layout.ports.mlflow), "--workers", "1",
        "--app-name", "basic-auth", "--artifacts-destination", f"s3://{ARTIFACT_BUCKET}",
    )  # fmt: skip
    return Service("mlflow", 1, command, environment, _answers(f"{layout.url('mlflow')}/health"), write_settings)


def _prefect(layout: Layout, credentials: Credentials) -> Service:
    environment = {
        **_prefect_environment(layout, credentials),
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(layout.ports.prefect),
        "PREFECT_SERVER_API_AUTH_STRING": f"{PREFECT_USER}:{credentials.prefect}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": (
            f"postgresql+asyncpg://prefect@{HOST}:{layout.ports.postgres}/prefect"
        ),
        "PGPASSWORD": credentials.postgres_prefect,
    }
    command = (sys.executable, "-m", "prefect", "server", "start")
    return Service("prefect", 1, command, environment, _answers(f"{layout.url('prefect')}/api/health"))


def _worker(layout: Layout, credentials: Credentials) -> Service:
    environment = {
        **_prefect_environment(layout, credentials),
        **layout.client_environment(credentials),
        "PREFECT_WORKER_WEBSERVER_HOST": HOST,
        "PREFECT_WORKER_WEBSERVER_PORT": str(layout.ports.worker),
    }
    command = (
        sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process",
        "--name", f"{getpass.getuser()}-{WORK_POOL}", "--with-healthcheck",
    )  # fmt: skip
    answers = _answers(f"{layout.url('worker')}/health")
    pool_url, login = f"{layout.url('prefect')}/api/work_pools/{WORK_POOL}", (PREFECT_USER, credentials.prefect)

    def takes_runs() -> bool:
        """The worker answers a little before it has made its pool and reported to it."""
        if not answers():
            return False
        try:
            answer = requests.get(pool_url, auth=login, timeout=HEALTH_TIMEOUT_S)
        except requests.RequestException:
            return False
        return answer.ok and answer.json()["status"] == "READY"

    return Service("worker", 2, command, environment, takes_runs, grace_s=20.0)


def _prefect_environment(layout: Layout, credentials: Credentials) -> dict[str, str]:
    clients = layout.client_environment(credentials)
    return {
        **_inherited(),
        "PREFECT_HOME": str(layout.folder / "prefect"),
        "PREFECT_API_URL": clients["PREFECT_API_URL"],
        "PREFECT_API_AUTH_STRING": clients["PREFECT_API_AUTH_STRING"],
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _inherited() -> dict[str, str]:
    """The caller's environment without the settings of other servers, and with this Python's programs first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def _answers(url: str) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return requests.get(url, timeout=HEALTH_TIMEOUT_S).status_code == 200
        except requests.RequestException:
            return False

    return check
