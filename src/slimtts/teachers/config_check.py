"""Whether config.json tells the truth about the weights beside it; asked before a model of these sizes is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from slimtts.errors import InvalidInputError
from slimtts.model_files import StoredTensor, check_inside, read_object

CONFIG = "config.json"
# Decoders that transformers builds from these sizes alone, with layers in `model.layers`.
BODIES = ("llama", "qwen2", "qwen3", "mistral", "lfm2", "slimtts_cosyvoice2")
MOST_POSITIONS, MOST_LABELS, MOST_LAYERS = 1 << 24, 10_000, 1000
LARGEST_EPSILON = 0.1  # of a norm; published models have 1e-6 to 1e-5
# A number of 8 bits stands for one of 32; what else config.json may ask for beside what is stored is small.
MOST_GROWTH = 8


def _refused(folder: Path, observed: object, allowed: object) -> InvalidInputError:
    return InvalidInputError(f"checkpoint {folder}", observed, allowed, "copy the checkpoint again, from its makers")


def fitting_config(folder: Path, tensors: Mapping[str, StoredTensor], is_quantised: bool) -> Any:
    """The configuration of a checkpoint whose weights have these headers.

    Raises:
        InvalidInputError: damaged, of another kind of model, or of other sizes than the stored tensors.
    """
    if not (folder / CONFIG).exists():
        raise _refused(folder, f"no {CONFIG}", "a folder written by save_pretrained")
    check_values(folder, len(tensors))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    expected = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    numbers = sum(tensor.numel() for tensor in built.parameters())
    most = psutil.virtual_memory().total + psutil.swap_memory().total
    if numbers * 4 > most:
        raise _refused(folder, f"weights of {numbers * 4 / 2**30:.0f} GiB in fp32", f"{most / 2**30:.0f} GiB of memory")
    if is_quantised:
        if numbers > MOST_GROWTH * sum(tensor.numbers for tensor in tensors.values()):
            raise _refused(folder, f"a {CONFIG} of {numbers} weights", "as many as are stored")
        return config
    wrong = sorted(name for name, shape in expected.items() if name in tensors and tensors[name].shape != shape)
    if wrong:
        sizes = f"{list(tensors[wrong[0]].shape)} in the weights and {list(expected[wrong[0]])} by {CONFIG}"
        raise _refused(folder, f"tensor {wrong[0]} of {sizes}", "the same sizes")
    tied = built.all_tied_weights_keys
    missing = sorted(name for name in expected.keys() - tensors.keys() if tied.get(name) not in tensors)
    if missing:
        raise InvalidInputError(
            f"checkpoint {folder}", f"{len(missing)} tensors missing or unexpected, first {missing[0]}",
            "exactly the tensors of its config.json", "copy or train the checkpoint again",
        )  # fmt: skip
    return config


def check_values(folder: Path, most_layers: int = MOST_LAYERS) -> None:
    """Refuses what makes transformers work or fetch without end as soon as it reads config.json.

    Raises:
        InvalidInputError: names the entry.
    """
    values = read_object(check_inside(folder, folder / CONFIG))
    kind = values.get("model_type")
    if kind not in BODIES:
        code = " with custom code" if "auto_map" in values else ""
        raise _refused(folder, f"model_type {str(kind)[:40]!r}{code}", f"one of {', '.join(BODIES)}")
    for key, value in values.items():
        if key == "transformers_weights" or ("attn_implementation" in key and "/" in str(value)):
            raise _refused(folder, f"{key} = {str(value)[:80]!r}", f"no other file or repository in {CONFIG}")
    layers = min(most_layers, MOST_LAYERS)
    limits = {"num_hidden_layers": layers, "max_position_embeddings": MOST_POSITIONS, "num_labels": MOST_LABELS}
    for key, most in limits.items():
        if key in values and not (type(values[key]) is int and 1 <= values[key] <= most):
            raise _refused(folder, f"{key} = {str(values[key])[:40]}", f"a number from 1 to {most}")
    epsilon = values.get("rms_norm_eps", 1e-6)
    if not _is_number(epsilon) or not 0 <= epsilon <= LARGEST_EPSILON:
        raise _refused(folder, f"rms_norm_eps = {str(epsilon)[:40]}", f"0 to {LARGEST_EPSILON}")
    for part in (values, values.get("rope_parameters"), values.get("rope_scaling")):
        for key, value in part.items() if isinstance(part, dict) else ():
            if key == "partial_rotary_factor" and value is not None and not (_is_number(value) and 0 < value <= 1):
                raise _refused(folder, f"{key} = {str(value)[:40]}", "more than 0, at most 1")
            if key == "rope_theta" and value is not None and not (_is_number(value) and value > 0):
                raise _refused(folder, f"{key} = {str(value)[:40]}", "more than 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
