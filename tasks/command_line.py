"""How a flow's command starts and ends: servers that answer, places that can be written, one line for what went wrong.

Ctrl-C ends it in order: the stage is stopped, MLflow and Prefect are told, then the temporary server ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from slimtts.errors import InvalidInputError, SlimttsError, refusal_of_system
from tasks.prefect_server import OwnServer, start_server
from tasks.server_errors import told_of_a_server
from tasks.service_checks import check_folder, check_tracking
from tasks.stage_runner import StageError

INTERRUPTED = {signal.SIGINT: 130, signal.SIGHUP: 129}  # exit codes as a shell gives them
ENDING_S = 15.0  # after this an interrupted command ends without being in order
BY_SIGNAL = "Execution was aborted by an interrupt signal."  # how Prefect describes it


def run_command(
    work: Callable[[], int],
    next_step: str,
    runs: Path | None = None,
    check: Callable[[], object] = lambda: None,
    needs_server: bool = True,
) -> int:
    """Runs a flow; the exit code: 0 done, 1 failed, 2 something that only you can mend, 130 interrupted.

    Args:
        work: Starts the flow and shows its result.
        next_step: What an interrupted person can do.
        runs: Where runs live, for flows that write there and to MLflow.
        check: Refuses what is wrong before a server starts for nothing.
        needs_server: False for what is no flow.

    An interrupted command leaves the signals to itself: its process ends after this.
    """
    from prefect.exceptions import TerminationSignal

    interruption = _Interruption()
    began = datetime.now(UTC)
    try:
        check()
        if runs is not None:
            check_folder(runs)
            check_tracking(runs)
        if needs_server:
            start_server()
        return work()
    except (KeyboardInterrupt, TerminationSignal) as ending:
        if isinstance(ending, TerminationSignal):  # Prefect's, for SIGTERM
            interruption.exit_code = 128 + signal.SIGTERM
        interruption.begin()
        mark_cancelled(began)
        print(f"slimtts: interrupted; {next_step}", file=sys.stderr)
        return interruption.exit_code
    except SlimttsError as error:
        return refused(error)
    except Exception as error:
        if told_of_a_server(error):  # first: those of requests are errors of the system too
            return 1
        problem = refusal_of_system(error, "the run")
        if problem is None:
            raise
        return refused(problem)
    finally:
        interruption.restore()


def refused(error: SlimttsError) -> int:
    """Prints the error as one line; the exit code: 2 when only a person can mend it, else 1."""
    print(f"slimtts: {error}", file=sys.stderr)
    mendable = isinstance(error, InvalidInputError) or (isinstance(error, StageError) and not error.worth_retrying)
    return 2 if mendable else 1


class _Interruption:
    """The first Ctrl-C raises KeyboardInterrupt, further ones change nothing; the end comes within `ENDING_S`."""

    def __init__(self) -> None:
        self.exit_code = INTERRUPTED[signal.SIGINT]
        self._begun = False
        self._former = {number: signal.getsignal(number) for number in INTERRUPTED}
        for number, former in self._former.items():
            if former is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Handles signals as before, unless the process is about to end."""
        if not self._begun:
            for number, former in self._former.items():
                signal.signal(number, former)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = INTERRUPTED[signal.Signals(number)]
        self.begin()
        raise KeyboardInterrupt

    def begin(self) -> None:
        """Says nothing more but the last line, and sets the time within which the process ends."""
        if self._begun:
            return
        self._begun = True
        for number in INTERRUPTED:
            signal.signal(number, signal.SIG_IGN)  # also while the interpreter shuts down
        logging.disable(logging.CRITICAL)
        watch = threading.Timer(ENDING_S, self._end)
        watch.daemon = True
        watch.start()

    def _end(self) -> NoReturn:
        print("slimtts: interrupted; what did not end in time was killed", file=sys.stderr, flush=True)
        os._exit(self.exit_code)  # children die with their parent


def mark_cancelled(since: datetime) -> None:
    """Prefect calls a run that a person interrupted Crashed, as one whose machine died: here it becomes Cancelled."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterStartTime, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateType as StateType
    from prefect.client.schemas.objects import StateType as Kind
    from prefect.settings import get_current_settings
    from prefect.states import Cancelled

    if get_current_settings().api.url is None and not OwnServer().running:
        return  # it was interrupted before there was a server
    ended = FlowRunFilter(
        start_time=FlowRunFilterStartTime(after_=since), state=FlowRunFilterState(type=StateType(any_=[Kind.CRASHED]))
    )
    with suppress(Exception), get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=ended):
            if run.state and run.state.message == BY_SIGNAL:
                client.set_flow_run_state(run.id, Cancelled(message="Interrupted in the terminal."), force=True)
