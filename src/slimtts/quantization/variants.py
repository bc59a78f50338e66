"""The names of what can be made of a student, and what each does to the decoder's linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from slimtts.errors import InvalidInputError
from slimtts.params import VariantName


@dataclass(frozen=True)
class Variant:
    """`is_sparse`: two of every four weights are zero. `kind`: how the weights are stored, None for 16 bit."""

    is_sparse: bool
    kind: str | None


VARIANTS: dict[str, Variant] = {
    "int8": Variant(False, "int8"),
    "fp8": Variant(False, "fp8"),
    "sparse24": Variant(True, None),
    "sparse24_int8": Variant(True, "int8"),
}
NAMES: tuple[str, ...] = get_args(VariantName)


def variant_of(name: str) -> Variant:
    """What the name stands for.

    Raises:
        InvalidInputError: no such variant.
    """
    if name not in VARIANTS:
        raise InvalidInputError("variant", f"'{name}'", ", ".join(NAMES), "choose one of these")
    return VARIANTS[name]
