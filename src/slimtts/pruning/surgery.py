"""Builds the student: the retained layers, embeddings, final norm and head, copied into a shallower model.

Works for decoders of transformers whose layers live in `model.model.layers` (Llama, Qwen2). The result has its own
storage, layer indices 0..k-1 (the key/value cache needs them), and every per-layer list of the config shortened.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.initialization import no_init_weights

from slimtts.pruning.plan import check_retained


def shortened_config(config: Any, retained: Sequence[int]) -> Any:
    """A copy of the config for `retained` layers: the count, and each list that has one entry a layer."""
    short = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(short, name, [value[i] for i in retained])
    short.num_hidden_layers = len(retained)
    return short


def retained_name(name: str, position: dict[int, int]) -> str | None:
    """The student's name of a teacher's tensor; None when its layer was cut."""
    prefix = "model.layers."
    if not name.startswith(prefix):
        return name
    layer, rest = name[len(prefix) :].split(".", 1)
    return f"{prefix}{position[int(layer)]}.{rest}" if int(layer) in position else None


def built_from(model: Any, config: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """A new model of `config` that holds `state`; kind, dtype, device, mode and generation settings are `model`'s."""
    with torch.random.fork_rng(devices=[]), no_init_weights():  # random weights would only be overwritten
        built = type(model)(config)
    built.tie_weights()
    built.to(dtype=model.dtype, device=model.device)
    for name, module in built.named_modules():
        if hasattr(module, "inv_freq"):  # `to` has rounded it; in bf16 an angle at position 1,000 is wrong by 0.44 rad
            module.inv_freq = model.get_submodule(name).inv_freq.clone()
    built.load_state_dict(state, strict=True)
    built.generation_config = copy.deepcopy(model.generation_config)
    return built.train(model.training)


def remove_layers(model: Any, retained: Sequence[int]) -> Any:
    """A new model with only the retained layers; the given one is not touched.

    Raises:
        InvalidInputError: `retained` is not a set of existing layers.
    """
    kept = check_retained(retained, model.config.num_hidden_layers)
    position = {layer: index for index, layer in enumerate(kept)}
    renamed = {retained_name(name, position): tensor for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in renamed.items() if name is not None}
    return built_from(model, shortened_config(model.config, kept), state)
