"""One training in several processes: each takes rows of every batch, and the gradients are added up.

The gradient of a step is that of the whole batch, whatever the number of processes: every term of the loss is a sum
over target positions divided by the positions of the whole batch. So a training may change its number of processes
at any checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from slimtts.checkpoints import whole
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill.batches import part_of
from slimtts.distill.healing import Part
from slimtts.distill.ranks import RENDEZVOUS, current_rank
from slimtts.errors import InvalidInputError
from slimtts.params import DistillStudentParams


class Learner(nn.Module):
    """The student behind one forward: a wrapper that sees each call synchronises each gradient."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student

    def forward(self, part: Part) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss with gradient, and the terms without."""
        return part(self.student)


@dataclass(frozen=True)
class World:
    """The processes of a training; this one is number `rank`."""

    rank: int = 0
    size: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"

    @property
    def leads(self) -> bool:
        """The process that writes files and shows progress."""
        return self.rank == 0

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, batch: ForcedBatch, micro_batches: int) -> list[ForcedBatch]:
        """What this process works on, in at most so many parts; every process gets as many parts."""
        parts = min(micro_batches, ceil(len(batch.ids) / self.size))
        return [part_of(batch, part * self.size + self.rank, parts * self.size) for part in range(parts)]

    def learner(self, student: Any, device: torch.device) -> nn.Module:
        """The student as it is trained here: alone, as one of equal replicas, or as shards of every matrix."""
        if self.size == 1:
            return Learner(student)
        if self.parallel == "ddp":
            return DistributedDataParallel(Learner(student), gradient_as_bucket_view=True)
        mesh = init_device_mesh(device.type, (self.size,))
        for layer in student.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(Learner(student), mesh=mesh)

    def gathering(self, learner: nn.Module, is_last_part: bool) -> AbstractContextManager[object]:
        """Around forward and backward of a part: the processes add up their gradients with the last one only."""
        if isinstance(learner, FSDPModule):
            learner.set_requires_gradient_sync(is_last_part)
        if isinstance(learner, DistributedDataParallel) and not is_last_part:
            return learner.no_sync()
        return nullcontext()

    def check_same_step(self, what: str, step: int, sha256: str = "") -> None:
        """Raises InvalidInputError where the processes did not read the same checkpoint, of the same content."""
        content = int(sha256[:15] or "0", 16)
        bounds = torch.tensor([step, -step, content, -content])
        if self.size > 1:
            dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
        if bounds[0] != -bounds[1] or bounds[2] != -bounds[3]:
            other = f"step {int(bounds[0])}" if bounds[0] != -bounds[1] else "other content"
            raise InvalidInputError(
                f"checkpoints of {what}",
                f"step {step} in process {self.rank}, {other} in another",
                "the same in all",
                "give all machines one shared workspace",
            )


ALONE = World()


def gathered(model: Any, plain: Callable[[], Any], world: World) -> Any:
    """The trained model as one process can save it: itself, or the weights of all shards in `plain()`.

    All processes must ask; what is made of shards is given to the one that leads, None to the others.
    """
    if world.size == 1 or world.parallel == "ddp":
        return model
    weights = {name: whole(tensor, world.leads) for name, tensor in model.state_dict().items()}
    if not world.leads:
        return None
    copy = plain()
    copy.load_state_dict(weights)
    return copy


def check_parallel(knobs: DistillStudentParams) -> None:
    """Raises InvalidInputError for settings that cannot run in several processes."""
    if knobs.processes > 1 and knobs.parallel == "fsdp" and knobs.optimizer == "muon":
        raise InvalidInputError(
            "distill_student.parallel",
            "fsdp with optimizer muon, which needs whole matrices",
            "ddp with muon, or fsdp with adamw",
            "set distill_student.optimizer=adamw (and a tenth of the learning rate), or parallel=ddp",
        )


@contextmanager
def joined(knobs: DistillStudentParams, device: torch.device) -> Iterator[World]:
    """The world of this training, while it lasts.

    Raises:
        InvalidInputError: another number of processes runs than `knobs` say; so many do not silently train apart.
    """
    rank = current_rank()
    size = rank.world_size if rank else 1
    if size != knobs.processes:
        raise InvalidInputError(
            "distill_student.processes", knobs.processes, f"{size}, as many as were started", "correct one of them"
        )
    if rank is None or size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=os.environ.get(RENDEZVOUS, "env://"), rank=rank.number, world_size=size
    )
    try:
        yield World(rank.number, size, knobs.parallel)
    finally:
        dist.destroy_process_group()
