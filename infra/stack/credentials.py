"""Random passwords of a stack: made once, kept in one file that only its owner may read, never printed."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from slimtts.errors import InvalidInputError

BYTES = 24


@dataclass(frozen=True)
class Credentials:
    """Passwords by service. The representation shows none of them."""

    postgres_admin: str = field(repr=False)
    postgres_mlflow: str = field(repr=False)
    postgres_prefect: str = field(repr=False)
    s3: str = field(repr=False)
    mlflow: str = field(repr=False)
    mlflow_cookies: str = field(repr=False)
    prefect: str = field(repr=False)


def make_credentials(path: Path) -> Credentials:
    """Reads the file, or makes it with new random passwords."""
    if not path.exists():
        fresh = Credentials(*(secrets.token_hex(BYTES) for _ in dataclasses.fields(Credentials)))
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump(dataclasses.asdict(fresh), stream)
        temporary.rename(path)
    return read_credentials(path)


def read_credentials(path: Path) -> Credentials:
    """Passwords of a stack that exists.

    Raises:
        InvalidInputError: no such file, others may read it, or it holds something else.
    """
    if not path.is_file():
        raise InvalidInputError(str(path), "no such file", "the secrets of a stack", "start one: make stack")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise InvalidInputError(str(path), f"mode {mode:04o}", "0600", f"chmod 600 {path}, and make new passwords")
    try:
        return Credentials(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise InvalidInputError(str(path), "not the secrets of a stack", "its JSON", "remove the folder") from None
