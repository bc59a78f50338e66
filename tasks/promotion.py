"""Who moves @production: one at a time, by the gate's verdict, and never without a record.

A move is recorded first, then the alias follows, then the record is marked as followed. A kill between these is
finished by the next call, whoever makes it; what somebody changed without us is found by the same comparison.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.params import RegisterModelParams
from slimtts.promotion import Production, basis_of, judge
from slimtts.promotion_history import (
    PromotionEvent,
    open_proposal,
    overdue,
    recorded_basis,
    recorded_limits,
    same_decision,
    valid_reason,
    version_before,
)
from slimtts.promotion_limits import SHIPPED, limits_of, softened, stricter, strictest, thin_measurements
from slimtts.results import Verdict
from tasks.evidence import Evidence, model_version
from tasks.locks import exclusive_lock
from tasks.promotion_log import PRODUCTION, PromotionLog, Snapshot
from tasks.team_gate import team_gate

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTHING = "none"  # as what to roll back to: production is empty
LEASE_S = 60.0  # after which the slot of a killed holder is free again


@dataclass(frozen=True)
class Request:
    """Who wants a decision, why, and in which flow run; `approver` is the person who agreed, where one must."""

    actor: str
    reason: str = ""
    accept_new_basis: str = ""
    flow_run: str = ""
    approver: str = ""

    @classmethod
    def now(cls, reason: str = "", accept_new_basis: str = "") -> Request:
        """By SLIMTTS_ACTOR, else a deployment's flow run, else user@host.

        Raises:
            InvalidInputError: words that the history cannot hold.
        """
        from prefect.runtime import deployment, flow_run

        run = flow_run.id or ""
        actor = os.environ.get("SLIMTTS_ACTOR") or (f"flow-run {run}" if run and deployment.id else _user())
        return cls(
            valid_reason(actor, "SLIMTTS_ACTOR"), valid_reason(reason),
            valid_reason(accept_new_basis, "--accept-new-basis"), run,
        )  # fmt: skip


@dataclass(frozen=True)
class Promotions:
    """The decisions about one model."""

    client: MlflowClient
    runs_root: Path
    model_name: str

    @property
    def log(self) -> PromotionLog:
        """Where they are recorded."""
        return PromotionLog(self.client, self.runs_root, self.model_name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else decides about this model: a file lock on this machine, in flows a limit of the Prefect server."""
        from prefect.context import FlowRunContext, TaskRunContext

        with exclusive_lock(self.runs_root / f".promotion-{self.model_name}.lock", on_wait=lambda: None):
            if FlowRunContext.get() or TaskRunContext.get():
                with _prefect_slot(f"promotion-{self.model_name}"):
                    yield
            else:
                yield

    def decide(self, version: str, evidence: Evidence, wanted: RegisterModelParams, request: Request) -> PromotionEvent:
        """Judges the version against the gate and what is in production now; promotes, refuses or proposes it.

        The gate is the team's; limits of `wanted` count where they are stricter. A retry gives the record that is
        there.
        """
        gate = stricter(wanted, team_gate())
        with self.alone():
            self._settle(expire=not request.approver)
            seen = self.log.read()
            event = self._decision(version, evidence, gate, request, seen)
            known = same_decision(seen.events, event)
            if known is None:
                self._record(event, seen)
            else:
                self._show(known)
        return known or event

    def decline(self, version: str, request: Request) -> PromotionEvent:
        """Records that a person said no to the open question about this version."""
        with self.alone():
            self._settle(expire=False)
            seen = self.log.read()
            asked = open_proposal(seen.events, version)
            if asked is None:
                return [event for event in seen.events if event.version == version][-1]
            changes = {
                "action": "declined", "recorded_at": datetime.now(UTC), "expires_at": None,
                "actor": request.approver, "reason": request.reason, "flow_run": request.flow_run,
            }  # fmt: skip
            event = asked.model_copy(update=changes)
            self._record(event, seen)
        return event

    def roll_back(self, to: str, request: Request) -> PromotionEvent:
        """Returns @production to the version before the present one, or to `to`, which was in production before.

        "none" takes the alias away. A repeated call of the same flow run, or one after a kill, changes nothing more.

        Raises:
            InvalidInputError: nothing is in production, nothing was before, or `to` never was.
        """
        with self.alone():
            finished = self._settle()
            seen = self.log.read()
            if finished and finished.action == "rolled_back" and to in ("", finished.version or NOTHING):
                return finished
            for event in seen.events:
                if event.action == "rolled_back" and request.flow_run and event.flow_run == request.flow_run:
                    return event
            event = PromotionEvent(
                model_name=self.model_name,
                version=self._former(to, seen),
                action="rolled_back",
                former_version=seen.production,
                recorded_at=datetime.now(UTC),
                actor=request.actor,
                reason=request.reason,
                flow_run=request.flow_run,
            )
            if event.version == (seen.production or ""):
                return event
            self._record(event, seen)
        return event

    def check_roll_back(self, to: str) -> None:
        """Changes nothing.

        Raises:
            InvalidInputError: as `roll_back`.
        """
        seen = self.log.read()
        unfinished = seen.last_move is not None and seen.last_move[0] != seen.applied
        if not unfinished:
            self._former(to, seen)

    def settle(self) -> None:
        """Finishes what a kill left, and records what happened without us: overdue questions, a moved alias."""
        with self.alone():
            self._settle()

    def _decision(
        self, version: str, evidence: Evidence, gate: RegisterModelParams, request: Request, seen: Snapshot
    ) -> PromotionEvent:
        present = seen.production
        other = Production(present, recorded_basis(seen.events, present)) if present not in (None, version) else None
        limits = limits_of(team_gate())
        verdict = judge(evidence.evaluation, gate, evidence.release.lineage, other, request.accept_new_basis)
        thin = thin_measurements(evidence.knobs, gate)
        if thin:
            verdict = Verdict(decision="INCOMPLETE", reasons=thin)
        accepted = verdict.decision == "ACCEPT"
        wanted = gate.approval == "required" or open_proposal(seen.events, version) is not None
        must_ask = accepted and wanted and present != version and not request.approver
        now = datetime.now(UTC)
        words = [request.reason, f"new basis: {request.accept_new_basis}" if request.accept_new_basis else ""]
        return PromotionEvent(
            model_name=self.model_name,
            version=version,
            action="proposed" if must_ask else "promoted" if accepted else "refused",
            former_version=present,
            recorded_at=now,
            actor=request.approver or request.actor,
            reason="; ".join(filter(None, words)),
            decision=verdict.decision,
            reasons=tuple(verdict.reasons),
            release_decision=evidence.release.verdict.decision,
            evaluation_sha256=evidence.evaluation_sha256,
            basis=basis_of(evidence.evaluation) if accepted else None,
            flow_run=request.flow_run,
            limits=limits,
            softened=softened(limits, strictest(SHIPPED, recorded_limits(seen.events))),
            expires_at=now + timedelta(hours=gate.approval_hours) if must_ask else None,
        )

    def _former(self, to: str, seen: Snapshot) -> str:
        if to == NOTHING:
            return ""
        were_there = dict.fromkeys(event.version for event in seen.events if event.is_move and event.version)
        if to and to not in were_there:
            raise InvalidInputError(
                "--to", f"version {to}, never in production", ", ".join(were_there) or "none", f"slimtts promote {to}"
            )
        former = to or (version_before(seen.events, seen.production) if seen.production else None)
        if not former:
            raise InvalidInputError(
                f"{self.model_name}@{PRODUCTION}", f"version {seen.production or 'none'}, nothing before it",
                "a version that replaced another", f"choose one with --to, or --to {NOTHING} to serve nothing",
            )  # fmt: skip
        model_version(self.client, self.model_name, former)
        return former

    def _settle(self, expire: bool = True) -> PromotionEvent | None:
        """As `settle`; gives the move that a kill had left unfinished."""
        seen, now, unfinished = self.log.read(), datetime.now(UTC), None
        last = seen.last_move
        if last and last[0] != seen.applied:
            self._follow(*last)
            unfinished = last[1]
        elif last and last[1].version != (seen.production or ""):
            outside = PromotionEvent(
                model_name=self.model_name, version=seen.production or "", action="moved_outside",
                former_version=last[1].version or None, recorded_at=now, actor="unknown",
            )  # fmt: skip
            self.log.mark_applied(self.log.append(outside, seen))
        for event in overdue(seen.events, now) if expire else []:
            self._record(event, self.log.read())
        return unfinished

    def _record(self, event: PromotionEvent, seen: Snapshot) -> None:
        key = self.log.append(event, seen)
        if event.is_move:
            self._follow(key, event)
        else:
            self._show(event)

    def _follow(self, key: str, event: PromotionEvent) -> None:
        """Alias first, then what the version's page shows, last the mark."""
        if event.version:
            self.client.set_registered_model_alias(self.model_name, PRODUCTION, event.version)
        else:
            self.client.delete_registered_model_alias(self.model_name, PRODUCTION)
        self._show(event)
        self.log.mark_applied(key)
        observed = self.log.read()
        if observed.applied != key or observed.production != (event.version or None):
            raise SlimttsError(
                f"{self.model_name}@{PRODUCTION}: observed version {observed.production or 'none'} right after moving "
                f"it to {event.version}; allowed: one writer; next: look at `slimtts history`, then repeat the command"
            )

    def _show(self, event: PromotionEvent) -> None:
        """The last decision on the version's own page."""
        if event.version:
            tags: dict[str, str] = {"last_action": event.action}
            if event.decision:
                tags |= {"verdict": event.decision, "verdict_reasons": "; ".join(event.reasons) or "none"}
            for key, value in tags.items():
                self.client.set_model_version_tag(self.model_name, event.version, key, value)


@contextmanager
def _prefect_slot(name: str) -> Iterator[None]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # somebody else was first
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    with concurrency(name, occupy=1, lease_duration=LEASE_S, strict=True):
        yield


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}@{socket.gethostname()}"
