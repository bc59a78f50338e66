"""The training loop: resumable to the bit, one checkpoint folder, one file of curves.

A run that is killed at any moment and started again ends with the weights of an uninterrupted run (same machine,
same number of threads): batches depend on the step, and weights, optimiser and random numbers are in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimtts.checkpoints import load_latest, restore, save_checkpoint
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.errors import InvalidInputError
from slimtts.params import DistillStudentParams
from slimtts.results import TrainingReport

Loss = Callable[[Any, ForcedBatch], tuple[torch.Tensor, dict[str, float]]]
CLIP_NORM = 1.0
Optimizers = dict[str, torch.optim.Optimizer]


def pick_device(wanted: str) -> torch.device:
    """`auto` takes CUDA when there is one.

    Raises:
        InvalidInputError: cuda was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("distill_student.device", "cuda", "a visible CUDA device", "use auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bf16 on CUDA and on processors that multiply it natively; fp32 elsewhere, where bf16 would be emulated."""
    native = device.type == "cuda" or "AVX512_BF16" in _cpu_features()
    return torch.autocast(device.type, torch.bfloat16) if native else nullcontext()


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
        made["muon"] = torch.optim.Muon(matrices, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
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


def _resume_curves(path: Path, step: int) -> None:
    """Keeps the lines of the first `step` steps, so that no step is ever listed twice."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in kept))


def train(
    job: TrainingJob, params: DistillStudentParams, device: torch.device, after_step: Callable[[int], object]
) -> TrainingReport:
    """Runs the job to `params.steps`, resuming from `job.folder`; the model is trained in place.

    Raises:
        InvalidInputError: the loss is not finite, or the checkpoints belong to another configuration.
    """
    torch.manual_seed(params.seed)
    model = job.model.to(device).train()
    optimizers = make_optimizers(model, params.optimizer)
    found = load_latest(job.folder, job.fingerprint)
    first, tokens, seconds = 0, 0, 0.0
    if found:
        loop = restore(found, {"model": model}, optimizers)
        first, tokens, seconds = found.step, loop["tokens"], loop["seconds"]
    curves = job.folder / "curves.jsonl"
    _resume_curves(curves, first)
    started, last_loss = time.monotonic(), math.nan
    with curves.open("a") as stream:
        for step, batch in enumerate(job.batches(first), start=first):
            after_step(step)
            if step >= params.steps:
                break
            rate = learning_rate(step, params.steps, job.learning_rate, params.warmup_share)
            for optimizer in optimizers.values():
                optimizer.param_groups[0]["lr"] = rate
            with mixed_precision(device):
                loss, terms = job.loss(model, batch.to(device))
            last_loss = loss.item()
            if not math.isfinite(last_loss):
                raise InvalidInputError(
                    f"training {job.name}, step {step}",
                    f"loss {last_loss}",
                    "a finite loss",
                    "lower distill_student.learning_rate; the last checkpoint is kept",
                )
            loss.backward()
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
                "gradient_norm": float(norm),
            }
            stream.write(json.dumps(row | terms) + "\n")
            stream.flush()
            if (step + 1) % params.checkpoint_every_steps == 0 or step + 1 == params.steps:
                os.fsync(stream.fileno())
                loop = {"tokens": tokens, "seconds": seconds + time.monotonic() - started, "loss": last_loss}
                save_checkpoint(job.folder, step + 1, job.fingerprint, {"model": model}, optimizers, loop)
    if found and found.step >= params.steps:
        last_loss = found.state["loop"]["loss"]
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
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
