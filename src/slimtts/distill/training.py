"""The training loop: resumable to the bit, one checkpoint folder, one file of curves.

A run that is killed at any moment and started again ends with the weights of an uninterrupted run (same machine,
same number of threads): batches depend on the step, and weights, optimiser and random numbers are in the checkpoint.
With another number of processes it goes on to the same loss within rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from slimtts.checkpoints import CheckpointWriter, resume, whole
from slimtts.curves import CURVES, cut_curve
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill.distributed import ALONE, World
from slimtts.distill.healing import AddUp, Part
from slimtts.distill.muon import BatchedMuon
from slimtts.errors import InvalidInputError
from slimtts.machine import prepare_cuda
from slimtts.params import DistillStudentParams
from slimtts.results import TrainingReport

CLIP_NORM = 1.0
Optimizers = dict[str, torch.optim.Optimizer]


class Loss(Protocol):
    """What is trained for: a step's batch in, one loss a part out; they add up to that of the whole batch."""

    def parts(self, batches: Sequence[ForcedBatch], count: int, add_up: AddUp) -> Sequence[Part]:
        """See `HealingLoss.parts`."""
        ...


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA when there is one; each process of a machine takes its own device.

    Raises:
        InvalidInputError: cuda was asked for and is not there, or there are fewer devices than processes.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("distill_student.device", "cuda", "a visible CUDA device", "use auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InvalidInputError(
            "distill_student.processes",
            f"process {local_rank} of this machine with {torch.cuda.device_count()} CUDA devices",
            "one process a device",
            "lower distill_student.processes",
        )
    torch.cuda.set_device(local_rank)
    prepare_cuda(torch.device("cuda"))
    return torch.device("cuda")


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bf16 on CUDA and on processors that multiply it natively; fp32 elsewhere, where bf16 would be emulated."""
    return torch.autocast(device.type, torch.bfloat16) if multiplies_bf16(device) else nullcontext()


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for it."""
    return device.type == "cuda" or "AVX512_BF16" in _cpu_features()


def _cpu_features() -> str:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.is_file() else ""
    return text.upper()


def learning_rate(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizers(model: nn.Module, kind: str) -> Optimizers:
    """AdamW for all parameters, or Muon for the matrices of the decoder layers and AdamW for the rest.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982), so both follow one learning rate.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if kind == "muon" and p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    made: Optimizers = {"adamw": torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)}
    if matrices:
        made["muon"] = BatchedMuon(matrices)
    return made


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, on what, and where its state lives."""

    name: str
    model: Any
    loss: Loss
    batches: Callable[[int], Iterator[ForcedBatch]]
    folder: Path
    fingerprint: str
    learning_rate: float


def _backward(
    learner: nn.Module, job: TrainingJob, batch: ForcedBatch, world: World, params: DistillStudentParams, step: int
) -> dict[str, float]:
    """Leaves the gradient of the whole batch in the model; gives loss and terms of the whole batch."""
    device = next(learner.parameters()).device
    count = int(batch.is_target.sum())
    shares = [share.to(device) for share in world.share(batch, params.micro_batches)]
    with mixed_precision(device):
        parts = job.loss.parts(shares, count, world.add_up)
    totals: dict[str, float] = {}
    for number, part in enumerate(parts, start=1):
        with world.gathering(learner, is_last_part=number == len(parts)):
            with mixed_precision(device):
                loss, terms = learner(part)
            (loss * world.size).backward()  # the processes' gradients are averaged, and we want their sum
        values = torch.stack([loss.detach(), *terms.values()]).tolist()  # asked for once: the device works on till then
        if not math.isfinite(values[0]):
            raise InvalidInputError(
                f"training {job.name}, step {step}",
                f"loss {values[0]}",
                "a finite loss",
                "lower distill_student.learning_rate; the last checkpoint is kept"
                if step
                else "check the model and the data: no step was taken yet, so it is not the learning rate",
            )
        for name, value in zip(("loss", *terms), values, strict=True):
            totals[name] = totals.get(name, 0.0) + value
    summed = world.add_up(torch.tensor(list(totals.values()), dtype=torch.float64))
    return dict(zip(totals, summed.tolist(), strict=True))


def train(
    job: TrainingJob,
    params: DistillStudentParams,
    device: torch.device,
    after_step: Callable[[int], object],
    world: World = ALONE,
) -> TrainingReport:
    """Runs the job to `params.steps`, resuming from `job.folder`; the model is trained in place.

    Raises:
        InvalidInputError: the loss is not finite, or the checkpoints belong to another configuration.
    """
    torch.manual_seed(params.seed)
    model = job.model.to(device).train()
    learner = world.learner(model, device)
    optimizers = make_optimizers(model, params.optimizer)
    resumed = resume(job.folder, job.fingerprint, {"model": model}, optimizers, ("tokens", "seconds", "loss"))
    first, tokens, seconds, last_loss = 0, 0, 0.0, math.nan
    if resumed:
        loop = resumed.state["loop"]
        first, tokens, seconds, last_loss = resumed.step, loop["tokens"], loop["seconds"], loop["loss"]
    world.check_same_step(job.name, first, resumed.sha256 if resumed else "")
    curves = job.folder / CURVES if world.leads else Path(os.devnull)
    if world.leads:
        cut_curve(curves, first)
    started = time.monotonic()
    writer = CheckpointWriter(job.folder, job.fingerprint, is_writer=world.leads)
    with curves.open("a") as stream, writer:
        for step, batch in enumerate(job.batches(first), start=first):
            after_step(step)
            if step >= params.steps:
                break
            rate = learning_rate(step, params.steps, job.learning_rate, params.warmup_share)
            for optimizer in optimizers.values():
                optimizer.param_groups[0]["lr"] = rate
            totals = _backward(learner, job, batch, world, params, step)
            last_loss = totals.pop("loss")
            norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            tokens += int(batch.is_target.sum())
            row = {
                "name": job.name,
                "step": step,
                "loss": last_loss,
                "learning_rate": rate,
                "gradient_norm": float(whole(norm)),
            }
            stream.write(json.dumps(row | totals) + "\n")
            stream.flush()
            if (step + 1) % params.checkpoint_every_steps == 0 or step + 1 == params.steps:
                if world.leads:
                    os.fsync(stream.fileno())
                loop = {"tokens": tokens, "seconds": seconds + time.monotonic() - started, "loss": last_loss}
                writer.save(step + 1, {"model": model}, optimizers, loop)
    model.eval()
    return TrainingReport(
        name=job.name,
        steps=params.steps,
        tokens=tokens,
        wall_s=seconds + time.monotonic() - started,
        final_loss=last_loss if math.isfinite(last_loss) else 0.0,
        weights_sha256=hash_parameters(model),
    )


def hash_parameters(model: nn.Module) -> str:
    """SHA-256 over all tensors in name order: equal models, equal hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(whole(tensor).float().contiguous().numpy().tobytes())
    return digest.hexdigest()
