"""Where the served model comes from: the package, a folder, or a registry that a process of its own asks.

This package knows no registry. A registered model is brought by `python -m tasks.fetch_model`, which verifies it and
prints where it lies.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.printable import printable

REGISTERED = re.compile(r"models:/([A-Za-z0-9._-]+)(@[A-Za-z0-9._-]+|/[0-9]+)")
FETCH_TIMEOUT_S = 900.0
KEY_VARIABLE = "SLIMTTS_API_KEY"


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be loaded: `folder`, None for the bundled teacher, and its identity in the registry, if any."""

    id: str
    folder: Path | None
    version: str | None = None
    run_id: str | None = None
    student_sha256: str | None = None


# (folder to make, version that is present) -> the model's files, or None when that version is still the one.
Fetch = Callable[[Path, str | None], ModelFiles | None]


def source_of(model: str) -> Fetch:
    """How to get "bundled", a folder, or models:/NAME@ALIAS.

    Raises:
        InvalidInputError: none of these.
    """
    if model == "bundled":
        return lambda _folder, _version: ModelFiles("bundled", None)
    if REGISTERED.fullmatch(model):
        return lambda folder, version: fetch_registered(model, folder, version)
    path = Path(model)
    if not model or not path.is_dir():
        raise InvalidInputError(
            "--model", f"'{model}'", '"bundled", a folder, or models:/NAME@ALIAS', "correct the name or the path"
        )
    return lambda _folder, _version: ModelFiles(printable(path.resolve().name), path)


def fetch_registered(model: str, folder: Path, present_version: str | None) -> ModelFiles | None:
    """Asks `tasks.fetch_model` of this checkout; the key of this server stays here.

    Raises:
        SlimttsError: no checkout, or the model was refused or could not be fetched; one line that says why.
    """
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / "tasks" / "fetch_model.py").is_file():
        raise InvalidInputError("--model", f"{model}, no tasks in {checkout}", "a checkout of the project", "clone it")
    command = [sys.executable, "-m", "tasks.fetch_model", model, str(folder.resolve())]
    command += ["--unless-version", present_version] if present_version else []
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    try:
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InvalidInputError(
            model, f"nothing after {FETCH_TIMEOUT_S:.0f} s", "a registry that answers", "check it and try again"
        ) from None
    if done.returncode:
        raise SlimttsError((done.stderr.strip().splitlines() or [f"fetch_model ended with {done.returncode}"])[-1])
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if told["folder"] is None:
        return None
    return ModelFiles(told["name"], Path(told["folder"]), told["version"], told["run_id"], told["student_sha256"])
