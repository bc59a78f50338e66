"""The curve of a training: one JSON object a line and step, written while it trains, read by whoever shows it.

A line that is damaged costs a point and never the training.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from slimtts.storage import atomic_path, remove

logger = logging.getLogger(__name__)

CURVES = "curves.jsonl"


def read_points(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Points by rising step, and how many lines are none; a last line without its end is still being written."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError:  # a folder, or a disk that does not give it back
        return [], 1
    points: list[dict[str, Any]] = []
    lines = text[: text.rfind("\n") + 1].splitlines()
    for line in lines:
        point = _point(line)
        if point and (not points or point["step"] > points[-1]["step"]):
            points.append(point)
    return points, len(lines) - len(points)


def _point(line: str) -> dict[str, Any] | None:
    try:
        point = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_point = isinstance(point, dict) and isinstance(point.get("name"), str) and type(point.get("step")) is int
    return point if is_point and point["step"] >= 0 else None


def cut_curve(path: Path, step: int) -> None:
    """Keeps the points of the first `step` steps, so that no step is ever listed twice; damaged lines go."""
    points, damaged = read_points(path)
    if damaged:
        logger.warning("%s: %d damaged lines are left out of the curve", path, damaged)
    text = "".join(json.dumps(point) + "\n" for point in points if point["step"] < step)
    with atomic_path(path) as temporary:
        temporary.write_text(text)
        if path.is_dir():
            remove(path)
