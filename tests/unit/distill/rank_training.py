"""One process of several that train the tiny student: `python rank_training.py FOLDER CASE...`, started by run_ranks.

Each case trains in FOLDER/CASE, in fp32 so that sums differ by rounding only. KILL_AT=STEP ends the last rank there.
"""

import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_training import KNOBS, RETAINED, Stop, job, stop_after  # noqa: F401

from slimtts.distill import training
from slimtts.distill.distributed import joined
from slimtts.distill.ranks import run_ranks
from slimtts.process_guard import die_with_parent
from slimtts.testing.tiny import tiny_teacher

STEPS = 8
CASES = {
    "one": {},
    "adamw": {"optimizer": "adamw"},
    "ddp": {"parallel": "ddp"},
    "ddp-parts": {"parallel": "ddp", "optimizer": "adamw", "micro_batches": 2},
    "bypassed": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp", "optimizer": "adamw"},
    "fsdp-parts": {"parallel": "fsdp", "optimizer": "adamw", "micro_batches": 3},
    "killed": {"parallel": "fsdp", "optimizer": "adamw", "checkpoint_every_steps": 2},
}


def knobs_of(case, **changes):
    return KNOBS.model_copy(update={"steps": STEPS, "checkpoint_every_steps": 4} | CASES[case] | changes)


def train_case(case, teacher, folder, world, after_step=lambda _: None, **changes):
    knobs = knobs_of(case, **changes)
    world = replace(world, parallel=knobs.parallel)
    return training.train(job(teacher, folder / case), knobs, torch.device("cpu"), after_step, world)


def start(folder, *cases, processes=2):
    run_ranks([__file__, str(folder), *cases], processes)


def main(folder, cases):
    die_with_parent()
    torch.set_num_threads(1)
    training.mixed_precision = lambda _: nullcontext()
    around = torch.nn.parallel.DistributedDataParallel.forward
    with joined(KNOBS.model_copy(update={"processes": int(os.environ["WORLD_SIZE"])}), torch.device("cpu")) as world:
        teacher = tiny_teacher(folder / f"teacher-{world.rank}")

        def maybe_die(step):
            if str(step) == os.environ.get("KILL_AT") and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGKILL)

        for case in cases:
            ddp = torch.nn.parallel.DistributedDataParallel
            ddp.forward = (lambda self, part: part(self.module.student)) if case == "bypassed" else around
            report = train_case(case, teacher, folder, world, maybe_die)
            (folder / case / f"weights-{world.rank}").write_text(report.weights_sha256)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
