"""Runs whose process or worker died go on by themselves, a limited number of times: five automations of Prefect.

python -m tasks.recovery --attempts 3

Only runs with the tag `recover` take part. Their processes must beat at least three times within the silence:
PREFECT_FLOWS_HEARTBEAT_FREQUENCY, which infra/prefect.yaml sets to the 30 seconds that Prefect allows at least. The
server needs PostgreSQL: with SQLite an automation may meet a locked database; then its event is taken up four times,
and the later ones of that run wait for minutes (seen with Prefect 3.8).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.automations import AutomationCore, EventTrigger

TAG = "recover"
ATTEMPTS = 3  # starts after a crash; the run may begin once more than this
SILENCE_S = 90.0
START_WITHIN_S = 900.0  # a worker took the run and died before it began
CANCEL_WITHIN_S = 120.0  # a worker kills within 30 s; later than this there is none
GAVE_UP = "GaveUp"  # name of a Crashed state that is not started again; its event is prefect.flow-run.GaveUp
# A crash is told twice: by the process that watches the run, and seconds later by the worker. Started again in between,
# the run would be taken for crashed a second time.
SETTLED_S = 20.0
ENDED = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Paused", "Suspended", "AwaitingRetry", GAVE_UP)

RUN_COUNT = "prefect.run-count"
_RUN = {"prefect.resource.id": "prefect.flow-run.*"}
_TAGGED = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
_DEPLOYED = {"prefect.resource.id": "prefect.deployment.*", "prefect.resource.role": "deployment"}


def recovery_automations(attempts: int = ATTEMPTS, silence_s: float = SILENCE_S) -> list[AutomationCore]:
    """The automations, in the order in which a run meets them.

    The server counts the starts of a run and writes the count into every event, so the bound holds across workers,
    servers and retries by hand. A run that crashed before it first began (count 0: its code does not load) would do so
    again and is left alone.
    """
    from prefect.automations import AutomationCore
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    return [
        AutomationCore(
            name="slimtts: silent run has crashed",
            description=f"No heartbeat for {silence_s:g} s: the process is gone, whoever started it.",
            trigger=_absent({"heartbeat"}, {"heartbeat", *ENDED}, silence_s),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {silence_s:g} s")],
        ),
        AutomationCore(
            name="slimtts: crashed run goes on",
            description=f"Starts a crashed run again, at most {attempts} times; it continues its workspace.",
            trigger=_absent(
                {"Crashed"}, {"AwaitingRetry", "Pending", GAVE_UP}, SETTLED_S, [str(n) for n in range(1, attempts + 1)]
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED, name="AwaitingRetry", message="Crashed; goes on with the next worker"
                )
            ],
        ),
        AutomationCore(
            name="slimtts: run that keeps crashing is given up",
            description=f"After {attempts} starts again it stays crashed, as {GAVE_UP}, for notifications to see.",
            trigger=_seen("Crashed", str(attempts + 1)),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name=GAVE_UP,
                    message=f"Crashed {attempts + 1} times; next: read its log, mend the cause, then Retry",
                    force=True,
                )
            ],
        ),
        AutomationCore(
            name="slimtts: run that its worker lost goes on",
            description=f"A worker took the run, and it has not begun within {START_WITHIN_S:g} s.",
            trigger=_absent({"Pending"}, {"Running", "Scheduled", *ENDED}, START_WITHIN_S),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED, name="AwaitingRetry", message="Its worker is gone; waits for another"
                )
            ],
        ),
        AutomationCore(
            name="slimtts: cancelled run without a worker is cancelled",
            description=f"Nobody has killed the process within {CANCEL_WITHIN_S:g} s: its worker is gone.",
            trigger=_absent({"Cancelling"}, {"Cancelled", "Completed", "Failed", "Crashed"}, CANCEL_WITHIN_S),
            actions=[ChangeFlowRunState(state=StateType.CANCELLED, message="Cancelled while no worker had it")],
        ),
    ]


def install(automations: Sequence[AutomationCore]) -> list[str]:
    """Makes them on the server that PREFECT_API_URL names, or renews those of the same name; returns the names."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for automation in automations:
            known = client.read_automations_by_name(automation.name)
            if known:
                client.update_automation(known[0].id, automation)
            else:
                client.create_automation(automation)
    return [automation.name for automation in automations]


def _absent(after: set[str], expect: set[str], within_s: float, run_counts: Sequence[str] = ()) -> EventTrigger:
    from prefect.automations import EventTrigger, Posture

    return EventTrigger(
        after=_events(after),
        expect=_events(expect),
        match=_RUN | ({RUN_COUNT: list(run_counts)} if run_counts else {}),
        match_related=[_TAGGED, _DEPLOYED] if run_counts else _TAGGED,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )


def _seen(state: str, run_count: str) -> EventTrigger:
    from prefect.automations import EventTrigger, Posture

    return EventTrigger(
        expect=_events({state}),
        match=_RUN | {RUN_COUNT: run_count},
        match_related=[_TAGGED, _DEPLOYED],
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )


def _events(names: set[str]) -> set[str]:
    return {f"prefect.flow-run.{name}" for name in names}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tasks.recovery", description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=ATTEMPTS, help="starts after a crash")
    parser.add_argument("--silence", type=float, default=SILENCE_S, metavar="SECONDS", help="without a heartbeat")
    options = parser.parse_args()
    for name in install(recovery_automations(options.attempts, options.silence)):
        print(name)
