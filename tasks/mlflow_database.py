"""MLflow's SQLite file, made whole: migrated under another name, then renamed. A kill leaves no half-made database.

python -m tasks.mlflow_database sqlite:///runs/mlflow.db
"""

from __future__ import annotations

import functools
import logging
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.storage import atomic_path
from tasks.locks import exclusive_lock

# Rows that somebody could miss. Every database of MLflow has the experiment "Default".
CONTENT = {"runs": "1", "registered_models": "1", "experiments": "name != 'Default'"}
JOURNALS = ("-journal", "-wal", "-shm")  # SQLite would play a former file's journal into the new one


def ensure_database(uri: str) -> None:
    """Makes the SQLite file of `uri` unless it is there; a half-made one that holds no runs is set aside.

    Other kinds of stores are left to MLflow. Two processes that start at once make one database.

    Raises:
        InvalidInputError: the file is no database, cannot be written, or is of another MLflow and holds runs.
    """
    path = sqlite_file(uri)
    if path is None:
        return
    try:
        if _revision(path) != _newest_revision():
            with exclusive_lock(path.with_name(f".{path.name}.lock"), on_wait=lambda: None):
                _make(path)
    except OSError as error:
        raise InvalidInputError(
            str(path), error.strerror or str(error), "a folder that can be written", "correct --runs or its permissions"
        ) from None


def _make(path: Path) -> None:
    """Makes the database, whoever holds its lock, unless another process has made it meanwhile."""
    revision = _revision(path)
    if revision == _newest_revision():
        return
    if _holds_content(path):
        raise InvalidInputError(
            str(path), f"runs in a database of MLflow's schema {revision or 'without a version'}",
            f"schema {_newest_revision()}", f"copy the file, then `mlflow db upgrade sqlite:///{path}`",
        )  # fmt: skip
    for leftover in path.parent.glob(f".{path.name}.*/"):  # of kills: who makes one holds the lock
        shutil.rmtree(leftover)
    _set_aside(path)
    with atomic_path(path) as new:
        _migrate(new)


def sqlite_file(uri: str) -> Path | None:
    """The file behind a SQLAlchemy address; None for a server, a folder or a database in memory."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy import make_url

    database = make_url(uri).database
    return Path(database).absolute() if database and not database.startswith((":memory:", "file:")) else None


@functools.cache
def _newest_revision() -> str:
    """The schema of the installed MLflow."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _revision(path: Path) -> str:
    """The schema of the file; "" when it has none yet. Opening it rolls back what a kill cut off."""
    rows = _query(path, "SELECT version_num FROM alembic_version")
    return str(rows[0][0]) if rows else ""


def _holds_content(path: Path) -> bool:
    return any(_query(path, f"SELECT 1 FROM {table} WHERE {rule} LIMIT 1") for table, rule in CONTENT.items())  # noqa: S608


def _query(path: Path, question: str) -> list[tuple[object, ...]]:
    """The answer; nothing when there is no such file or table."""
    if not path.is_file():
        if path.exists():
            raise InvalidInputError(str(path), "no plain file", "an SQLite database", "move it away and start again")
        return []
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            return connection.execute(question).fetchall()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):
            return []
        raise InvalidInputError(
            str(path), error, "a database that can be read and written", "end what holds it, or correct permissions"
        ) from None
    except sqlite3.DatabaseError as error:
        raise InvalidInputError(
            str(path), error, "an SQLite database", "put back a copy of it, or move it away and start again"
        ) from None


def _set_aside(path: Path) -> None:
    """Renames a half-made database, its journals with it."""
    if not path.is_file():
        return
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.half-made-{n}").exists())
    for end in (*JOURNALS, ""):
        part = path.with_name(f"{path.name}{end}")
        if part.is_file():
            part.rename(path.with_name(f"{path.name}.half-made-{number}{end}"))


def _migrate(path: Path) -> None:
    """All tables of the installed MLflow in a new file: what `mlflow db upgrade` does with an empty one."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry

    for logger in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{path}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the database is whole, 2 something that only you can mend."""
    (uri,) = sys.argv[1:] if arguments is None else arguments
    try:
        ensure_database(uri)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
