"""The processes of one training: who am I among them, and starting those of this machine so that they end together.

The variables are torchrun's, so a training started by torchrun on several machines is the same to us. On one machine
we start the processes ourselves: torchrun's store listens on every network interface, a file does not (tried with
torch 2.11).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from slimtts.errors import InvalidInputError, SlimttsError

RENDEZVOUS = "SLIMTTS_RENDEZVOUS"  # where the processes of one machine meet, as torch's init_method
SUPERVISED = "SLIMTTS_SUPERVISED"  # set where the process that started us holds the stage's lock
NODES, ADDRESS = "SLIMTTS_NODES", "SLIMTTS_NODE0"  # machines of the training; host:port of the first one
BAD_INPUT_EXIT_CODE, FAILED_EXIT_CODE = 2, 1
POLL_S = 0.1


class RankError(SlimttsError):
    """A process of the training ended; the others were ended with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Rank:
    """One process of a training: `number` among all, `local` among those of its machine."""

    number: int
    local: int
    world_size: int


def current_rank(variables: Mapping[str, str] = os.environ) -> Rank | None:
    """This process' place, or None when it is not one of several.

    LOCAL_RANK decides: a cluster may give RANK to a machine, and then it does not number processes.
    """
    if "LOCAL_RANK" not in variables:
        return None
    return Rank(int(variables["RANK"]), int(variables["LOCAL_RANK"]), int(variables["WORLD_SIZE"]))


def lock_name(stage: str) -> str:
    """Which lock this process must hold: the stage's, unless another process of the training holds that."""
    rank = current_rank()
    if rank is None or (rank.number == 0 and SUPERVISED not in os.environ):
        return stage
    return f"{stage}.rank-{rank.number}"


def run_ranks(arguments: Sequence[str], processes: int) -> None:
    """Runs `python ARGUMENTS` as so many processes and waits; the first that fails ends all.

    With SLIMTTS_NODES above 1 this machine starts its share through torchrun; the others must do the same
    (infra/multinode).

    Raises:
        RankError: one failed; `exit_code` is 2 when its input is to blame, else 1.
        InvalidInputError: the processes cannot be shared out over the machines.
    """
    nodes = int(os.environ.get(NODES, "1"))
    with tempfile.TemporaryDirectory(prefix="slimtts-ranks-") as folder:
        if nodes > 1:
            _run_together([_torchrun(arguments, processes, nodes)], [{**os.environ, SUPERVISED: "1"}])
            return
        common = {
            "WORLD_SIZE": str(processes),
            RENDEZVOUS: f"file://{folder}/meeting",
            SUPERVISED: "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        of_each = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        variables = [{**os.environ, **common, **own} for own in of_each]
        _run_together([[sys.executable, *arguments]] * processes, variables)


def _torchrun(arguments: Sequence[str], processes: int, nodes: int) -> list[str]:
    if processes % nodes:
        raise InvalidInputError(
            "distill_student.processes",
            f"{processes} on {NODES}={nodes} machines",
            f"a multiple of {nodes}",
            "correct one of them",
        )
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes),
        "--nproc-per-node", str(processes // nodes), "--rdzv-backend", "c10d", "--rdzv-id", "slimtts",
        "--rdzv-endpoint", os.environ[ADDRESS], "--max-restarts", "0", "--no-python", sys.executable, *arguments,
    ]  # fmt: skip


def _run_together(commands: Sequence[Sequence[str]], variables: Sequence[Mapping[str, str]]) -> None:
    started: list[subprocess.Popen[str]] = []
    tails: list[deque[str]] = []
    readers = []
    try:
        for command, env in zip(commands, variables, strict=True):
            process = subprocess.Popen(command, env=dict(env), stderr=subprocess.PIPE, text=True, errors="replace")
            tail: deque[str] = deque(maxlen=20)
            reader = threading.Thread(target=_pass_on, args=(process.stderr, tail), daemon=True)
            reader.start()
            started.append(process)
            tails.append(tail)
            readers.append(reader)
        while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
            time.sleep(POLL_S)
        failed = [rank for rank, process in enumerate(started) if process.poll()]
    finally:
        for process in started:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
    if failed:
        raise _error(failed[0], started[failed[0]].returncode, len(started), tails[failed[0]])


def _pass_on(stream: IO[str], tail: deque[str]) -> None:
    for line in stream:
        tail.append(line.strip())
        sys.stderr.write(line)
        sys.stderr.flush()


def _error(rank: int, code: int, processes: int, tail: Sequence[str]) -> RankError:
    if code == BAD_INPUT_EXIT_CODE:
        told = [line.removeprefix("slimtts: ") for line in tail if line.startswith("slimtts: ")]
        return RankError((told or [f"process {rank} of {processes} refused its input"])[-1], BAD_INPUT_EXIT_CODE)
    ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RankError(
        f"distill_student: observed process {rank} of {processes} {ended}; allowed: all finish; "
        "next: run it again, it goes on from the last checkpoint",
        FAILED_EXIT_CODE,
    )
