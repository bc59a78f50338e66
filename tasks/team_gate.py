"""The gate of the team: params.yaml of the checkout that decides, changed by the file that SLIMTTS_GATE names.

Whoever deploys sets both. A run, its overrides, its profile and its revision can tighten these limits, not soften them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from slimtts.errors import InvalidInputError
from slimtts.params import Params, RegisterModelParams, parse_params
from slimtts.promotion_limits import STEPS, limits_of, softened
from tasks.checkouts import CHECKOUT

GATE_FILE = "SLIMTTS_GATE"


def team_gate() -> RegisterModelParams:
    """The limits that hold now.

    Raises:
        InvalidInputError: a file that is not there, or that does not hold limits alone.
    """
    values: dict[str, Any] = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    gate = parse_params(values, "params.yaml").register_model
    path = os.environ.get(GATE_FILE, "")
    if not path:
        return gate
    try:
        changes = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(
            GATE_FILE, " ".join(str(error).split()), "a YAML file of limits", "correct it"
        ) from None
    allowed = [*limits_of(gate), *STEPS, "approval_hours"]
    if not isinstance(changes, dict) or set(map(str, changes)) - set(allowed):
        observed = ", ".join(map(str, changes)) if isinstance(changes, dict) else type(changes).__name__
        raise InvalidInputError(f"{GATE_FILE} {path}", observed, ", ".join(allowed), "leave out what is no limit")
    return parse_params({**values, "register_model": {**values["register_model"], **changes}}, path).register_model


def team_limits() -> dict[str, Any]:
    """What a run begins with: the knobs of the gate that are limits or steps."""
    gate = team_gate()
    return {name: getattr(gate, name) for name in (*limits_of(gate), *STEPS)}


def refuse_softer(params: Params, what: str) -> None:
    """Refuses params whose gate is softer than the team's.

    Raises:
        InvalidInputError: names every softer limit.
    """
    softer = softened(params.register_model.model_dump(), team_gate().model_dump())
    if softer:
        raise InvalidInputError(
            what, ", ".join(f"register_model.{name} {change}" for name, change in softer.items()),
            "the team's limits or stricter ones",
            f"leave it out; who deploys sets limits in params.yaml of the checkout or in the file {GATE_FILE} names",
        )  # fmt: skip
