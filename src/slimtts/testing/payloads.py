"""What a stranger's file might do when it is run: write a marker. Tests put it everywhere and look for the marker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Payload:
    """Unpickled, it writes the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.marker,)


def python_payload(marker: Path) -> str:
    """Executed, it writes the marker."""
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
