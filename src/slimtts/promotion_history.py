"""What was decided about the versions of a model: who, when, why, from which version to which."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from slimtts.errors import InvalidInputError
from slimtts.printable import escaped
from slimtts.results import Basis, Decision, Result

Action = Literal["promoted", "refused", "proposed", "declined", "expired", "rolled_back", "moved_outside"]
MOVES: tuple[Action, ...] = ("promoted", "rolled_back", "moved_outside")
MAX_REASON_CHARACTERS = 500


class PromotionEvent(Result):
    """One decision about one version; `version` is "" when production was emptied, by a rollback or by somebody else.

    Actions: promoted, refused (by the gate), proposed (accepted, a person is asked until `expires_at`), declined (by
    the `actor`), expired (nobody answered), rolled_back, moved_outside (the alias was found elsewhere than recorded).
    `former_version` was in production before, if anything was. `decision` and `reasons` are the verdict,
    `release_decision` the one that the run itself reached, without regard to production. `limits` are those of the
    team, `softened` tells which were softer than shipped or than at the decision before. `actor` decided, `reason` are
    the actor's words, `flow_run` ran it.
    """

    model_name: str
    version: str
    action: Action
    former_version: str | None
    recorded_at: datetime
    actor: str = ""
    reason: str = ""
    decision: Decision | None = None
    reasons: tuple[str, ...] = ()
    release_decision: Decision | None = None
    evaluation_sha256: str = ""
    basis: Basis | None = None
    flow_run: str = ""
    limits: dict[str, float | None] = Field(default_factory=dict)
    softened: dict[str, str] = Field(default_factory=dict)
    expires_at: datetime | None = None

    @property
    def is_move(self) -> bool:
        """True when the version in production is `version` from here on."""
        return self.action in MOVES

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What makes two records of one version the same decision: a retry differs in who, when and where."""
        return self.model_name, self.version, self.action, self.evaluation_sha256, self.decision, self.reason


def same_decision(events: Sequence[PromotionEvent], event: PromotionEvent) -> PromotionEvent | None:
    """The record of this very decision, if the event is a retry.

    After another decision about the version, or after another version came to production, it is a new one.
    """
    for earlier in reversed(events):
        if earlier.version == event.version:
            return earlier if earlier.identity == event.identity else None
        if earlier.is_move:
            return None
    return None


def is_decided(events: Sequence[PromotionEvent], version: str, evaluation_sha256: str, decision: Decision) -> bool:
    """True when this evaluation, with this verdict of the release, was decided on: a decision is taken once."""
    question = (version, evaluation_sha256, decision)
    return any((event.version, event.evaluation_sha256, event.release_decision) == question for event in events)


def recorded_basis(events: Sequence[PromotionEvent], version: str) -> Basis | None:
    """What the version was judged on when it was last accepted; None when nothing is recorded."""
    bases = [event.basis for event in events if event.version == version and event.action == "promoted"]
    return bases[-1] if bases else None


def recorded_limits(events: Sequence[PromotionEvent]) -> dict[str, float | None]:
    """The team's limits at the last decision; none where none are recorded."""
    return next((dict(event.limits) for event in reversed(events) if event.limits), {})


def version_before(events: Sequence[PromotionEvent], present: str) -> str | None:
    """The version that `present` replaced when it came to production; returning to it was no replacement."""
    for event in reversed(events):
        came = event.is_move and event.action != "rolled_back" and event.former_version != present
        if came and event.version == present:
            return event.former_version or None
    return None


def open_proposal(events: Sequence[PromotionEvent], version: str) -> PromotionEvent | None:
    """The question about this version that nobody has answered yet."""
    about = [event for event in events if event.version == version]
    return about[-1] if about and about[-1].action == "proposed" else None


def overdue(events: Sequence[PromotionEvent], now: datetime) -> list[PromotionEvent]:
    """One `expired` event for each question that was to be answered before `now`."""
    open_ones = [open_proposal(events, version) for version in dict.fromkeys(event.version for event in events)]
    return [
        asked.model_copy(
            update={"action": "expired", "recorded_at": asked.expires_at, "actor": "nobody", "expires_at": None}
        )
        for asked in open_ones
        if asked and asked.expires_at and asked.expires_at <= now
    ]


def valid_reason(text: str, option: str = "--reason") -> str:
    """The words of a person on one line.

    Raises:
        InvalidInputError: too long for the registry, or not printable.
    """
    line = " ".join(text.split())
    if len(line) > MAX_REASON_CHARACTERS or not line.isprintable():
        raise InvalidInputError(
            option, f"{len(line)} characters", f"at most {MAX_REASON_CHARACTERS}, all printable", "say it shorter"
        )
    return line


def read_local_history(path: Path, model_name: str) -> list[PromotionEvent]:
    """Events of a promotions.jsonl, as runs kept them beside their registry before it held the history.

    Raises:
        InvalidInputError: a line is not an event; the message names it.
    """
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            events.append(PromotionEvent.model_validate_json(line))
        except ValidationError as error:
            raise InvalidInputError(
                f"{path} line {number}", str(error).splitlines()[0], "a promotion event",
                "restore the file from its backup, or move it away",
            ) from None  # fmt: skip
    return [event for event in events if event.model_name == model_name]


def event_line(event: PromotionEvent) -> str:
    """When, what, from -> to, who, by which softer limits, why: one line, whatever the registry holds."""
    judged = event.decision if event.action != "rolled_back" else None
    verdict = f" {judged}" if judged else ""
    if judged and event.release_decision not in (None, judged):
        verdict += f" (the release itself: {event.release_decision})"
    versions = f"{event.former_version or 'none'} -> {event.version or 'none'}" if event.is_move else event.version
    soft = ", ".join(f"{name} {change}" for name, change in event.softened.items())
    words = [f'"{event.reason}"'] if event.reason else []
    why = " ".join([*words, *(event.reasons if event.action in ("refused", "proposed") or not words else ())])
    return escaped(
        f"{event.recorded_at:%Y-%m-%d %H:%M:%S}Z  {event.action}{verdict}  {versions}  by {event.actor or 'unknown'}"
        + (f", softer limits: {soft}" if soft else "")
        + (f": {why}" if why else "")
    )
