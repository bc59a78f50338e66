"""What a flow needs from elsewhere, asked before it starts: a folder to write to and servers that answer."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from slimtts.doctor.services import without_secrets
from slimtts.errors import InvalidInputError
from tasks.tracking import tracking_uri

ANSWER_S, TRIES, PAUSE_S = 5.0, 3, 1.0


def check_folder(runs: Path) -> None:
    """Raises InvalidInputError where nothing can be written below `runs`."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs):
            pass
    except OSError as error:
        raise InvalidInputError(
            str(runs), error.strerror or str(error), "a folder that can be written", "correct it, or name one by --runs"
        ) from None


def check_tracking(runs: Path) -> None:
    """Raises InvalidInputError where MLFLOW_TRACKING_URI names a server that does not answer.

    MLflow's client itself would try for four minutes.
    """
    address = tracking_uri(runs)
    if address.startswith(("http://", "https://")):
        check_answer("MLFLOW_TRACKING_URI", address, "/health")


def check_answer(variable: str, address: str, path: str) -> None:
    """Raises InvalidInputError where nothing answers at `address`, which `variable` gives; asks a few times."""
    import requests

    problem = ""
    for attempt in range(TRIES):
        time.sleep(PAUSE_S if attempt else 0)
        try:
            status = requests.get(address.rstrip("/") + path, timeout=ANSWER_S).status_code
        except (requests.ConnectionError, requests.Timeout) as error:
            problem = type(error).__name__
        except (requests.RequestException, ValueError) as error:
            problem = type(error).__name__  # its text would show a password in the address
        else:
            if status < 500:
                return
            problem = f"status {status}"
    try:
        problem += f" at {without_secrets(urlsplit(address))}"
    except ValueError:
        problem = "an address that cannot be read"
    raise InvalidInputError(
        variable, problem, "the address of a server that answers", "start it, or correct the address"
    )
