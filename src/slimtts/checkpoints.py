"""Training checkpoints: weights, optimiser, loop state and random numbers; complete or absent, never half.

Training waits only until its state is copied to the host's memory; a thread writes the copy while the next steps run.
A checkpoint is a folder `step-00001200/` with `tensors.safetensors` and `state.json`, written under a temporary
name, renamed, and marked by an empty `DONE`. A folder that cannot be read is passed over for the one before it.
It holds whole tensors: what several processes began, sharded or not, any number of processes can go on with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from slimtts.errors import InvalidInputError
from slimtts.storage import atomic_path

DONE = "DONE"


@dataclass(frozen=True)
class Checkpoint:
    """What `load_latest` read: the step after which it was written, tensors by name, and the loop state."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def whole(tensor: torch.Tensor, is_wanted: bool = True) -> torch.Tensor:
    """The tensor on the CPU, or an empty one where it is not wanted.

    One that is sharded is put together first: all processes must ask for it.
    """
    gathered = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return gathered.detach().cpu() if is_wanted else torch.empty(0)


def _placed_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """This process' shard of the tensor, where `other` is sharded and as large."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    at_home = tensor.to(other.device, other.dtype)
    return distribute_tensor(at_home, other.device_mesh, other.placements, src_data_rank=None)


def _flatten_optimizer(
    name: str, optimizer: torch.optim.Optimizer, is_wanted: bool
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    state = optimizer.state_dict()
    tensors = {
        f"{name}/{index}/{key}": whole(torch.as_tensor(value), is_wanted)
        for index, slots in state["state"].items()
        for key, value in slots.items()
    }
    return tensors, state["param_groups"]


class CheckpointWriter:
    """Writes checkpoints of one training beside it; as a context it waits for the last one.

    One save is under way at a time: the next waits for it. What went wrong in writing is raised by the next save, or
    at the end of the context. A kill at any moment leaves the checkpoint before.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2, is_writer: bool = True) -> None:
        self.folder, self.fingerprint, self.keep, self.is_writer = folder, fingerprint, keep, is_writer
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._threads.shutdown(wait=True)

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk, and raises what kept it from getting there."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()

    def save(
        self,
        step: int,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        loop_state: Mapping[str, Any],
    ) -> None:
        """Begins to write `step-00000400/` and the like; then all but the `keep` newest go. `loop_state` must be JSON.

        Every process of a training calls it, because shards are gathered; the one that `is_writer` writes.
        """
        self.wait()
        tensors = {
            f"model/{m}/{k}": whole(v, self.is_writer)
            for m, model in models.items()
            for k, v in model.state_dict().items()
        }
        groups = {}
        for name, optimizer in optimizers.items():
            slots, groups[name] = _flatten_optimizer(f"optimizer/{name}", optimizer, self.is_writer)
            tensors |= slots
        if not self.is_writer:
            return
        tensors |= random_states()
        copies = {k: tensors.pop(k).clone(memory_format=torch.contiguous_format) for k in list(tensors)}
        state = {"step": step, "fingerprint": self.fingerprint, "param_groups": groups, "loop": dict(loop_state)}
        self._under_way = self._threads.submit(self._write, self.folder / f"step-{step:08d}", copies, json.dumps(state))

    def _write(self, final: Path, tensors: dict[str, torch.Tensor], state: str) -> None:
        for abandoned in self.folder.glob(".step-*"):  # by a save that was killed; a folder has one writer
            shutil.rmtree(abandoned)
        with atomic_path(final) as tmp:
            tmp.mkdir()
            save_file(tensors, tmp / "tensors.safetensors")
            (tmp / "state.json").write_text(state)
            (tmp / DONE).touch()
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old)


def save_checkpoint(
    folder: Path,
    step: int,
    fingerprint: str,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    loop_state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """One checkpoint, which is on the disk when this returns; see `CheckpointWriter.save`."""
    with CheckpointWriter(folder, fingerprint, keep) as writer:
        writer.save(step, models, optimizers, loop_state)
    return folder / f"step-{step:08d}"


def random_states() -> dict[str, torch.Tensor]:
    """The states of torch's random numbers: of the CPU, and of the current CUDA device where there is one."""
    states = {"rng/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["rng/cuda"] = torch.cuda.get_rng_state()
    return states


def load_latest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest readable checkpoint, or None when there is none.

    Raises:
        InvalidInputError: the newest readable checkpoint belongs to another configuration.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not (path / DONE).exists():
            continue
        try:
            state = json.loads((path / "state.json").read_text())
            found, step = state["fingerprint"], state["step"]
            tensors = load_file(path / "tensors.safetensors")
        except (SafetensorError, ValueError, KeyError, TypeError, OSError):  # truncated, or other bytes
            continue
        if found != fingerprint:
            raise InvalidInputError(
                f"checkpoint {path}",
                f"configuration {found}",
                fingerprint,
                "restore the former parameters or remove the checkpoint folder",
            )
        return Checkpoint(step, tensors, state)
    return None


def restore(
    checkpoint: Checkpoint,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> Mapping[str, Any]:
    """Puts weights, optimiser slots and torch's random state back; returns the loop state."""
    for name, model in models.items():
        prefix, shards = f"model/{name}/", model.state_dict()
        found = {k[len(prefix) :]: v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
        model.load_state_dict({k: _placed_like(v, shards[k]) if k in shards else v for k, v in found.items()})
    for name, optimizer in optimizers.items():
        prefix = f"optimizer/{name}/"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in checkpoint.tensors.items():
            if key.startswith(prefix):
                index, slot = key[len(prefix) :].split("/", 1)
                slots.setdefault(int(index), {})[slot] = _placed_like(value, parameters[int(index)])
        optimizer.load_state_dict({"state": slots, "param_groups": checkpoint.state["param_groups"][name]})
    torch.set_rng_state(checkpoint.tensors["rng/torch"].to(torch.uint8))
    if torch.cuda.is_available() and "rng/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"].to(torch.uint8))
    return checkpoint.state["loop"]
