"""Checkpoints whose decoder holds 8-bit weights: torchao's tensors, in safetensors the way transformers keeps them.

Each row of a linear layer's weight is stored as int8 or float8 (e4m3) numbers and one scale; the product is made with
activations in the model's own precision (weight-only). `config.json` says so, hence any transformers with torchao
opens such a folder. A stranger's may name other classes to be built, so only the two kinds written here are opened.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError

KINDS = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}  # name -> torchao's class
PARTS = {"PerRow", "torch.dtype"}  # all that their settings are made of


def stored_quantization(folder: Path) -> Any:
    """What config.json says of quantisation; None when it says nothing, or cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever opens the checkpoint says what is wrong with it
    return config.get("quantization_config") if isinstance(config, dict) else None


def check_quantization(folder: Path) -> bool:
    """True for 8-bit weights of a known kind, False for none.

    Raises:
        InvalidInputError: quantised in another way; nothing of the checkpoint was opened.
    """
    stored = stored_quantization(folder)
    if stored is None:
        return False
    method = str(stored.get("quant_method"))[:40] if isinstance(stored, dict) else "nobody known"
    named = set(_classes(stored))
    strange = sorted(named - {*KINDS.values(), *PARTS})
    if method == "torchao" and len(named & set(KINDS.values())) == 1 and not strange:
        return True
    raise InvalidInputError(
        f"checkpoint {folder}",
        f"quantised by {method}{f' with {strange[0][:40]}' if strange else ''}",
        f"16-bit weights, or {' or '.join(KINDS)} as `slimtts quantize` writes them",
        "take the 16-bit checkpoint, and quantise it with `slimtts quantize`",
    )


def _classes(stored: Any) -> Iterator[str]:
    """Every class that a setting names, however deep."""
    if isinstance(stored, dict):
        if "_type" in stored:
            yield str(stored["_type"])
        for value in stored.values():
            yield from _classes(value)
    elif isinstance(stored, list):
        for value in stored:
            yield from _classes(value)


def torchao_config(kind: str) -> Any:
    """torchao's settings for one of `KINDS`; a scale a row, nothing changed in torch's own settings."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, PerRow

    if kind == "int8":
        return Int8WeightOnlyConfig(granularity=PerRow(), version=2, set_inductor_config=False)
    return Float8WeightOnlyConfig(set_inductor_config=False)


@contextmanager
def expected_version() -> Iterator[None]:
    """torchao 0.17 warns at each load that version 2 of its int8 tensors, the one to use, is not yet its default."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stored version is not the same")
        yield
