"""Training checkpoints: weights, optimiser, loop state and random numbers; complete or absent, never half.

Training waits only until its state is copied to the host's memory; a thread writes the copy while the next steps run.
A checkpoint is a folder `step-00001200/` with `tensors.safetensors`, `state.json`, and `DONE`, which holds the SHA-256
of both; it is written under a temporary name and renamed. One that is not what was written, or does not fit what is
trained, is passed over for the one before it, with a line in the log. Hashing takes 0.7 s a GB (measured, 2026-11-28):
in the writing thread, and once when a training goes on.
It holds whole tensors: what several processes began, sharded or not, any number of processes can go on with.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
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
from slimtts.storage import atomic_path, changed_file, file_hashes, read_hashes, remove

logger = logging.getLogger(__name__)

DONE = "DONE"
HASHED = "hash"  # key of a state whose DONE holds hashes; earlier versions wrote an empty DONE


@dataclass(frozen=True)
class Checkpoint:
    """What `load_latest` read: the step after which it was written, tensors by name, the loop state, and a hash of
    the tensors' file, "" in one of an earlier version."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    sha256: str = ""


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
        state = {
            "step": step,
            "fingerprint": self.fingerprint,
            "param_groups": groups,
            "loop": dict(loop_state),
            HASHED: "sha256",
        }
        self._under_way = self._threads.submit(self._write, self.folder / f"step-{step:08d}", copies, json.dumps(state))

    def _write(self, final: Path, tensors: dict[str, torch.Tensor], state: str) -> None:
        for abandoned in self.folder.glob(".step-*"):  # by a save that was killed; a folder has one writer
            remove(abandoned)
        with atomic_path(final) as tmp:
            tmp.mkdir()
            save_file(tensors, tmp / "tensors.safetensors")
            (tmp / "state.json").write_text(state)
            (tmp / DONE).write_text(json.dumps(file_hashes(tmp)))
        # Later steps are of a training that went on from here because they could not be used.
        others = sorted(path for path in self.folder.glob("step-*") if path != final)
        later = [path for path in others if path.name > final.name]
        former = [path for path in others if path.name < final.name]
        for old in [*later, *former[: max(0, len(former) + 1 - self.keep)]]:
            remove(old)


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


def load_latest(
    folder: Path, fingerprint: str, misfit: Callable[[Checkpoint], str | None] = lambda _: None
) -> Checkpoint | None:
    """The newest checkpoint that is what was written and of which `misfit` names no fault; None when there is none.

    Those that are passed over are named in the log.

    Raises:
        InvalidInputError: the newest usable checkpoint belongs to another configuration.
    """
    complete = [path for path in sorted(folder.glob("step-*"), reverse=True) if (path / DONE).exists()]
    for path in complete:
        try:
            checkpoint = _read(path)
            is_ours = checkpoint.state["fingerprint"] == fingerprint
            fault = misfit(checkpoint) if is_ours else None
        except (SafetensorError, ValueError, KeyError, TypeError, OSError, RecursionError) as error:  # other bytes
            fault = str(error) or type(error).__name__
        if fault:
            logger.warning("checkpoint %s is passed over: %s", path, " ".join(fault.split()))
            continue
        if not is_ours:
            raise InvalidInputError(
                f"checkpoint {path}",
                f"configuration {checkpoint.state['fingerprint']}",
                fingerprint,
                "restore the former parameters or remove the checkpoint folder",
            )
        return checkpoint
    if complete:
        logger.warning("no checkpoint in %s can be used: this training starts anew", folder)
    return None


def _read(path: Path) -> Checkpoint:
    """The checkpoint in a folder; raises what reading raises, or ValueError where it is not what was written."""
    hashes, is_empty = read_hashes(path / DONE), not (path / DONE).stat().st_size
    if hashes is None and not is_empty:
        raise ValueError(f"{DONE} is damaged")
    changed = changed_file(path, hashes or {})
    if changed:
        raise ValueError(f"{changed} is not what was written")
    state = json.loads((path / "state.json").read_text())
    if not hashes and HASHED in state:
        raise ValueError(f"{DONE} has lost its hashes")
    if not isinstance(state["step"], int) or not isinstance(state["loop"], dict):
        raise ValueError("state.json holds no state of a training")
    tensors = load_file(path / "tensors.safetensors")
    checkpoint = Checkpoint(state["step"], tensors, state, (hashes or {}).get("tensors.safetensors", ""))
    if not hashes:
        logger.warning("checkpoint %s is of an earlier version and holds no hashes: its content is not verified", path)
    return checkpoint


def resume(
    folder: Path,
    fingerprint: str,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    loop_keys: Collection[str] = (),
) -> Checkpoint | None:
    """Puts the newest usable checkpoint back into models, optimisers and torch's random state; None: nothing changed.

    One whose loop state lacks one of `loop_keys` is of no use.

    Raises:
        InvalidInputError: the newest usable checkpoint belongs to another configuration.
    """

    def misfit(found: Checkpoint) -> str | None:
        lost = [key for key in loop_keys if key not in found.state["loop"]]
        return f"state.json has lost {lost[0]}" if lost else _misfit(found, models, optimizers)

    checkpoint = load_latest(folder, fingerprint, misfit)
    if checkpoint:
        restore(checkpoint, models, optimizers)
    return checkpoint


def _misfit(
    checkpoint: Checkpoint, models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> str | None:
    """Which tensor is missing, left over or of another shape; nothing has been changed yet."""
    tensors = checkpoint.tensors
    expected = {f"model/{m}/{k}": v.shape for m, model in models.items() for k, v in model.state_dict().items()}
    of_models = {name for name in tensors if name.startswith("model/")}
    strange = sorted(of_models ^ expected.keys()) or sorted(
        name for name, shape in expected.items() if tensors[name].shape != shape
    )
    if strange:
        return f"{strange[0]} is missing or of another shape"
    if "rng/torch" not in tensors:
        return "rng/torch is missing"
    for name, optimizer in optimizers.items():
        slots = _slots(tensors, name)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        groups = checkpoint.state["param_groups"][name]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
            return f"optimizer {name} has other parameters"
        if checkpoint.step and parameters and not slots:
            return f"optimizer {name} has lost its state"
        kinds = {kind for of_parameter in slots.values() for kind in of_parameter}
        for index, of_parameter in slots.items():
            fits = index < len(parameters) and of_parameter.keys() == kinds
            if not fits or any(t.ndim and t.shape != parameters[index].shape for t in of_parameter.values()):
                return f"optimizer/{name}/{index} is incomplete or of another shape"
    return None


def _slots(tensors: Mapping[str, torch.Tensor], name: str) -> dict[int, dict[str, torch.Tensor]]:
    """An optimiser's state: number of the parameter -> name -> tensor."""
    prefix = f"optimizer/{name}/"
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, slot = key[len(prefix) :].split("/", 1)
            slots.setdefault(int(index), {})[slot] = value
    return slots


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
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        slots = {
            index: {slot: _placed_like(value, parameters[index]) for slot, value in of_parameter.items()}
            for index, of_parameter in _slots(checkpoint.tensors, name).items()
        }
        optimizer.load_state_dict({"state": slots, "param_groups": checkpoint.state["param_groups"][name]})
    torch.set_rng_state(checkpoint.tensors["rng/torch"].to(torch.uint8))
    if torch.cuda.is_available() and "rng/cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["rng/cuda"].to(torch.uint8))
    return checkpoint.state["loop"]
