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
from slimtts.progress import note_line

RENDEZVOUS = "SLIMTTS_RENDEZVOUS"  # where the processes of one machine meet, as torch's init_method
SUPERVISED = "SLIMTTS_SUPERVISED"  # set where the process that started us holds the stage's lock
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
NODES, ADDRESS = "SLIMTTS_NODES", "SLIMTTS_NODE0"  # machines of the training; host:port of the first one
BAD_INPUT_EXIT_CODE, FAILED_EXIT_CODE = 2, 1
POLL_S, GONE_WITHIN_S = 0.1, 10.0


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

    All three variables decide: a cluster may give RANK to a machine, and then it does not number processes; a shell may
    have LOCAL_RANK left over.

    Raises:
        InvalidInputError: the three are no place among processes.
    """
    if not all(variables.get(name) for name in RANK_VARIABLES):
        return None
    numbers = [variables[name] for name in RANK_VARIABLES]
    number, local, size = (int(text) if text.isdecimal() else -1 for text in numbers)
    if not (0 <= local <= number < size):
        raise InvalidInputError(
            ", ".join(RANK_VARIABLES), ", ".join(map(repr, numbers)), "a place that torchrun gives, or none",
            f"unset {RANK_VARIABLES[1]}",
        )  # fmt: skip
    return Rank(number, local, size)


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
        InvalidInputError: the machines' variables are wrong, or they cannot share the processes evenly.
    """
    nodes = wanted_nodes()
    with tempfile.TemporaryDirectory(prefix="slimtts-ranks-") as folder:
        if nodes > 1:
            _run_together({"torchrun": (torchrun(arguments, processes, nodes), {**os.environ, SUPERVISED: "1"})})
            return
        common = {
            "WORLD_SIZE": str(processes),
            RENDEZVOUS: f"file://{folder}/meeting",
            SUPERVISED: "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        _run_together(
            {
                f"process {rank} of {processes}": (
                    [sys.executable, *arguments],
                    {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(processes)
            }
        )


def wanted_nodes() -> int:
    """SLIMTTS_NODES, or 1.

    Raises:
        InvalidInputError: it is no number of machines.
    """
    text = os.environ.get(NODES, "1")
    if not text.isdecimal() or int(text) < 1:
        raise InvalidInputError(NODES, repr(text), "a number of machines, 1 or more", "correct it or unset it")
    return int(text)


def torchrun(arguments: Sequence[str], processes: int, nodes: int) -> list[str]:
    """The command that starts this machine's share of `processes`, one of `nodes` machines that meet at the first."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        raise InvalidInputError(ADDRESS, "nothing", "host:port of the first machine", f"set it beside {NODES}")
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
        "--rdzv-endpoint", address, "--max-restarts", "0", "--no-python", sys.executable, *arguments,
    ]  # fmt: skip


def _run_together(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]]) -> None:
    """Runs name -> (command, environment) side by side."""
    started: dict[str, subprocess.Popen[str]] = {}
    tails: dict[str, deque[str]] = {}
    readers = []
    try:
        for name, (command, env) in commands.items():
            process = subprocess.Popen(command, env=dict(env), stderr=subprocess.PIPE, text=True, errors="replace")
            started[name], tails[name] = process, deque(maxlen=20)
            reader = threading.Thread(target=_pass_on, args=(process.stderr, tails[name]), daemon=True)
            reader.start()
            readers.append(reader)
        codes = [process.poll() for process in started.values()]
        while None in codes and not any(codes):
            time.sleep(POLL_S)
            codes = [process.poll() for process in started.values()]
        failed = {name: code for name, code in zip(started, codes, strict=True) if code}
    finally:
        for process in started.values():
            process.kill()
            process.wait()
        for reader in readers:
            reader.join(GONE_WITHIN_S)
    for name, code in failed.items():
        raise _error(name, code, tails[name])


def _pass_on(stream: IO[str], tail: deque[str]) -> None:
    for line in stream:
        tail.append(line.strip())
        sys.stderr.write(line)
        sys.stderr.flush()
        note_line()


def _error(name: str, code: int, tail: Sequence[str]) -> RankError:
    if code == BAD_INPUT_EXIT_CODE:
        told = [line.removeprefix("slimtts: ") for line in tail if line.startswith("slimtts: ")]
        return RankError((told or [f"{name} refused its input"])[-1], BAD_INPUT_EXIT_CODE)
    ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RankError(
        f"distill_student: observed {name} {ended}; allowed: all finish; "
        "next: run it again, it goes on from the last checkpoint",
        FAILED_EXIT_CODE,
    )
