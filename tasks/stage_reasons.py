"""Why a stage runs, in a person's words, from what `dvc status` reports and what dvc.lock remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FIRST_RUN = "first run"
PARAMS = "params.yaml"
MOST_SHOWN = 4  # reasons in a line; a person looks into params.yaml for more
LONGEST_VALUE = 40
HAPPENED = {"modified": "has changed", "new": "is new", "deleted": "is gone", "not in cache": "is not in the cache"}


def why_it_runs(workspace: Path, stage: str, changes: Any) -> str:
    """`first run`, or `again: distill_student.steps 200 -> 300, pruned has changed`."""
    remembered = _remembered(workspace / "dvc.lock", stage)
    if remembered is None:
        return FIRST_RUN
    reasons: list[str] = []
    for entry in changes if isinstance(changes, list) else [changes]:
        if not isinstance(entry, dict):
            reasons.append("its command has changed" if entry == "changed command" else str(entry))
            continue
        for kind, named in entry.items():
            for path, state in named.items():
                if path == PARAMS:
                    reasons += changed_knobs(workspace, remembered) or [f"{PARAMS} has changed"]
                else:
                    of = "its output " if kind == "changed outs" else ""
                    reasons.append(f"{of}{path} {HAPPENED.get(str(state), str(state))}")
    if not reasons:
        return "again: a stage before it has to"
    more = len(reasons) - MOST_SHOWN
    return "again: " + ", ".join(reasons[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def changed_knobs(workspace: Path, remembered: dict[str, Any]) -> list[str]:
    """`distill_student.steps 200 -> 300` for each knob that is not as dvc.lock has it."""
    former = remembered.get("params", {}).get(PARAMS, {})
    wanted = yaml.safe_load((workspace / PARAMS).read_text())
    changes = []
    for tracked, before in former.items():
        now: Any = wanted
        for part in tracked.split("."):
            now = now.get(part, {}) if isinstance(now, dict) else {}
        old, new = _leaves(tracked, before), _leaves(tracked, now)
        changes += [
            f"{knob} {_shown(old.get(knob))} -> {_shown(new.get(knob))}"
            for knob in {**old, **new}
            if old.get(knob) != new.get(knob)
        ]
    return changes


def _remembered(lock: Path, stage: str) -> dict[str, Any] | None:
    """What dvc.lock holds of a stage that has run; None where it has not, or the lock cannot be read."""
    try:
        stages = yaml.safe_load(lock.read_text())["stages"]
        remembered = stages.get(stage)
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return remembered if isinstance(remembered, dict) else None


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {leaf: one for key, inner in value.items() for leaf, one in _leaves(f"{name}.{key}", inner).items()}


def _shown(value: Any) -> str:
    text = repr(value) if value is None or isinstance(value, str) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
