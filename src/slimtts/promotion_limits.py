"""Limits of the gate: which of two is softer, and the stricter of both. They are the team's; a run can tighten them.

A limit says by its name which way it works: `max_...` is stricter when lower, `min_...` when higher, and None is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slimtts.params import RegisterModelParams

Limits = dict[str, float | None]
# What softer means for the knobs that are no numbers: from the strictest on.
STEPS: Mapping[str, tuple[Any, ...]] = {"approval": ("required", "none"), "promote": (False, True)}
# As the shipped params.yaml has them: the history tells of every decision by softer ones.
SHIPPED: Limits = {
    "min_utterances": 100, "max_wer_gap_upper_points": 3.0, "max_wer_points_over_production": None,
    "max_similarity_drop": 0.03, "max_mos_drop_upper": 0.15, "max_no_end_rate": 0.02, "min_speedup": 1.2,
    "max_reference_wer": 0.1, "max_teacher_wer": 0.2, "min_voice_contrast": 0.05,
}  # fmt: skip
# Knobs of evaluate_student on which an interval or a ratio rests, and the part of min_utterances that each needs: one
# resample, or one sentence, has an interval of no width.
SHARES = {"bootstrap_samples": 1.0, "mos_utterances": 0.2, "speed_utterances": 0.05}


def limits_of(gate: RegisterModelParams) -> Limits:
    """The numbers that a verdict depends on."""
    return {name: value for name, value in gate.model_dump().items() if name.startswith(("max_", "min_"))}


def stricter(gate: RegisterModelParams, other: RegisterModelParams) -> RegisterModelParams:
    """`gate` with every limit at least as strict as in `other`."""
    values, others = gate.model_dump(), other.model_dump()
    softer = softened(values, others)
    return gate.model_copy(update={name: others[name] for name in softer})


def softened(values: Mapping[str, Any], than: Mapping[str, Any]) -> dict[str, str]:
    """Name -> "5 instead of 3" of what is softer in `values`; what only one of them names is not compared."""
    return {
        name: f"{_shown(values[name])} instead of {_shown(than[name])}"
        for name in values
        if name in than and _is_softer(name, values[name], than[name])
    }


def thin_measurements(knobs: Mapping[str, Any], gate: RegisterModelParams) -> list[str]:
    """Sentences about what a run measured too little of for the gate's limits; `knobs` are its evaluate_student."""
    needed = {knob: max(1, math.floor(share * gate.min_utterances)) for knob, share in SHARES.items()}
    return [
        f"The evaluation was made with {knob} = {knobs[knob]}; at least {least} are needed."
        for knob, least in needed.items()
        if isinstance(knobs.get(knob), int) and knobs[knob] < least
    ]


def strictest(limits: Limits, others: Limits) -> Limits:
    """Each limit as the stricter of the two has it."""
    return limits | {name: others[name] for name in softened(limits, others)}


def _is_softer(name: str, value: Any, than: Any) -> bool:
    if name in STEPS:
        return STEPS[name].index(value) > STEPS[name].index(than)
    if not name.startswith(("max_", "min_")) or value == than or than is None:
        return False
    return value is None or not (value < than if name.startswith("max_") else value > than)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()
