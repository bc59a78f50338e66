"""Programs beside Python, and what each is for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from slimtts.doctor.finding import Finding

TOPIC = "Programs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHECKOUT = Path(__file__).parents[3]


def tool_findings(environment: Mapping[str, str] = os.environ, checkout: Path = CHECKOUT) -> list[Finding]:
    """The checkout's flows and dvc are needed, the others are for some tasks."""
    search = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    found = [
        _checkout(checkout),
        _program("dvc", shutil.which("dvc", path=search), "knows which stage is stale", "make install", is_needed=True),
        _program("git", shutil.which("git", path=search), "a run's record of its code", "install git to have it"),
    ]  # fmt: skip
    named = environment.get("CHROMIUM")
    browser = named if named and Path(named).is_file() else None
    browser = browser or next((path for name in BROWSERS if (path := shutil.which(name, path=search))), None)
    mend = "install Chromium, or name it in CHROMIUM"
    found.append(_program("chromium", browser, "pictures of pages, tests in a browser", mend))
    flite = shutil.which("flite", path=search)
    found.append(_program("flite", flite, "making the bundled corpus anew", "apt-get install flite"))
    return found


def _checkout(folder: Path) -> Finding:
    if (folder / "flows" / "compress_model.py").is_file():
        return Finding(TOPIC, "checkout", "ok", str(folder), is_needed=True)
    mend = "clone the project and `make install`"
    return Finding(TOPIC, "checkout", "missing", "no flows beside the package", mend, is_needed=True)


def _program(name: str, path: str | None, use: str, mend: str, is_needed: bool = False) -> Finding:
    if path:
        return Finding(TOPIC, name, "ok", f"{path}: {use}", is_needed=is_needed)
    return Finding(TOPIC, name, "missing" if is_needed else "off", f"not found: {use}", mend, is_needed)
