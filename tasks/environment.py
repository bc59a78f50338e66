"""What the environment must hold before Prefect, MLflow and DVC are imported: each reads it just then."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from slimtts.proxies import bypass_loopback, drop_unusable

SETTINGS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a cold start takes 11-23 s, the default gives 20
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# Where libraries write beside their work, below the home; a setting of yours wins where it can be written.
FOLDERS = {"PREFECT_HOME": ".prefect", "XDG_CACHE_HOME": ".cache", "MPLCONFIGDIR": ".config/matplotlib"}
SPARE_HOME = ".home"  # below the runs


def prepare(variables: MutableMapping[str, str], runs: Path) -> None:
    """Settings that yours win over, no proxy for this machine, and folders that can be written."""
    for name, value in SETTINGS.items():
        variables.setdefault(name, value)
    bypass_loopback(variables)
    for name in drop_unusable(variables):
        print(f"slimtts: {name} is not used: a SOCKS proxy needs the package socksio", file=sys.stderr)
    use_writable_folders(variables, runs / SPARE_HOME)


def use_writable_folders(variables: MutableMapping[str, str], spare: Path) -> None:
    """Where the home cannot be written, as in many containers, its folders are made below `spare`."""
    home = Path(variables.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises without one
    for name, below in FOLDERS.items():
        if not _can_write(Path(variables.get(name) or home / below)):
            variables[name] = str(spare / below)
            with suppress(OSError):  # Prefect makes no parents; what cannot be made is refused where it is needed
                (spare / below).mkdir(parents=True, exist_ok=True)


def _can_write(folder: Path) -> bool:
    """Whether files can be made there, or the folder itself where it is missing; permissions alone do not tell."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".slimtts-", dir=folder):
            return folder.is_absolute()
    except OSError:
        return False


def end_on_interrupt() -> None:
    """Until a command looks after its signals, Ctrl-C ends the process in one line: imports take seconds."""

    def end(*_: object) -> None:
        os.write(2, b"slimtts: interrupted before it started\n")
        os._exit(128 + signal.SIGINT)

    signal.signal(signal.SIGINT, end)
