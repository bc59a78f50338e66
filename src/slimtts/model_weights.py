"""Weights that a model can speak with: finite everywhere, and not zero where everything flows through.

A tensor at a time is mapped from the file and looked at in pieces, so that a check needs no memory to speak of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from slimtts.errors import InvalidInputError
from slimtts.model_files import StoredTensor, stored_tensors

PIECE = 1 << 22  # numbers looked at together
EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
# Without one of these nothing is said. A single layer's may be zero: it then only passes on what it reads.
NEVER_ZERO = (EMBEDDING, HEAD, FINAL_NORM)
ADDED_BY_LAYER = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def check_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, after all its numbers were looked at.

    Raises:
        InvalidInputError: as `stored_tensors`; a number that is not finite; an embedding, head or final norm of zeros,
            or decoder layers that all add nothing.
    """
    tensors = stored_tensors(folder)
    check_numbers(folder, tensors)
    return tensors


def check_numbers(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Looks at all numbers of the tensors that `stored_tensors` lists.

    Raises:
        InvalidInputError: as `check_weights`.
    """
    largest: dict[str, float] = {}
    for file in sorted({tensor.file for tensor in tensors.values()}):
        largest |= _largest_magnitudes(file)
    empty = [name for name in NEVER_ZERO if largest.get(name) == 0]
    if empty:
        raise _refused(folder, f"only zeros in tensor {empty[0]}", "weights that were trained")
    added = [value for name, value in largest.items() if name.endswith(ADDED_BY_LAYER)]
    if added and not any(added):
        raise _refused(folder, f"only zeros in all {len(added)} outputs of its layers", "weights that were trained")


def _largest_magnitudes(file: Path) -> dict[str, float]:
    """The greatest absolute value of each tensor in a file."""
    largest: dict[str, float] = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                largest[name] = 0.0
                for piece in _pieces(opened.get_tensor(name)):
                    low, high = (float(bound) for bound in torch.aminmax(piece))
                    if not (math.isfinite(low) and math.isfinite(high)):
                        number = "NaN" if math.isnan(low) else "an infinite number"
                        raise _refused(file, f"{number} in tensor {name[:80]}", "finite weights")
                    largest[name] = max(-low, high, largest[name])
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _refused(file, str(error).splitlines()[0], "a complete checkpoint") from None
    return largest


def check_finite(what: str, values: torch.Tensor) -> None:
    """Refuses numbers that only a broken model makes; otherwise NaN is taken for the likeliest code, or for 0.

    Raises:
        InvalidInputError: not all of them are finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise InvalidInputError(what, "not finite", "finite numbers", "use another copy of the model")


def differs(tensors: Mapping[str, StoredTensor], one: str, other: str) -> bool:
    """Whether two stored tensors hold other numbers."""
    if tensors[one].shape != tensors[other].shape:
        return True
    with safe_open(tensors[one].file, "pt") as first, safe_open(tensors[other].file, "pt") as second:
        pairs = zip(_pieces(first.get_tensor(one)), _pieces(second.get_tensor(other)), strict=True)
        return any(not torch.equal(a.float(), b.float()) for a, b in pairs)


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor as vectors of at most `PIECE` numbers, of a type that can be compared; none of an empty one."""
    flat = tensor.reshape(-1)
    for piece in flat.split(PIECE) if flat.numel() else ():
        yield piece.float() if piece.dtype.itemsize == 1 and piece.is_floating_point() else piece


def _refused(folder: Path, observed: str, allowed: str) -> InvalidInputError:
    return InvalidInputError(f"checkpoint {folder}", observed, allowed, "copy or train the checkpoint again")
