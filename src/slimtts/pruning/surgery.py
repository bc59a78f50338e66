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

from slimtts.decoding.plain import skipping_layers
from slimtts.errors import InvalidInputError
from slimtts.model_weights import EMBEDDING, HEAD
from slimtts.pruning.plan import check_retained
from slimtts.teachers.checkpoint import probe_logits

TOLERANCE = {True: 1e-4, False: 2e-2}  # in fp32, in 16 bit: of the greatest logit


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
    """A new model of `config` that holds `state`; kind, dtype, device, mode and generation settings are `model`'s.

    A head that differs from the embedding stays its own, whatever the config says of tying.

    Raises:
        InvalidInputError: the new model does not hold exactly `state`.
    """
    is_real = model.device.type != "meta"
    if is_real and HEAD in state and EMBEDDING in state and not torch.equal(state[HEAD], state[EMBEDDING]):
        config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]), no_init_weights():  # random weights would only be overwritten
        built = type(model)(config)
    built.tie_weights()
    frequencies = {name: module.inv_freq for name, module in built.named_modules() if hasattr(module, "inv_freq")}
    built.to(dtype=model.dtype, device=model.device)
    for name, whole in frequencies.items():
        # In bf16 an angle at position 1,000 would be wrong by 0.44 rad; where the model's are rounded, so are these.
        if model.get_submodule(name).inv_freq.dtype == whole.dtype:
            built.get_submodule(name).inv_freq = whole.to(model.device)
    built.load_state_dict(state, strict=True)
    if not is_real:
        return built  # it is only counted
    changed = sorted(name for name, tensor in built.state_dict().items() if not torch.equal(tensor, state[name]))
    if changed:
        raise _failed(f"another tensor {changed[0]} than was put in")
    built.generation_config = copy.deepcopy(model.generation_config)
    return built.train(model.training)


def remove_layers(model: Any, retained: Sequence[int]) -> Any:
    """A new model with only the retained layers; the given one is not touched.

    Each time it is proven to say what the given one says when it passes the other layers by.

    Raises:
        InvalidInputError: `retained` is not a set of existing layers, or the new model says anything else.
    """
    kept = check_retained(retained, model.config.num_hidden_layers)
    position = {layer: index for index, layer in enumerate(kept)}
    renamed = {retained_name(name, position): tensor for name, tensor in model.state_dict().items()}
    state = {name: tensor for name, tensor in renamed.items() if name is not None}
    built = built_from(model, shortened_config(model.config, kept), state)
    if model.device.type != "meta":
        check_identity(model, built, kept)
    return built


def check_identity(model: Any, built: Any, retained: Sequence[int]) -> None:
    """Compares the logits of `built` with those of `model` where it passes all layers but the retained ones by.

    With all layers retained, these are the model's own. Tensors, layer order and every number of the config that the
    forward pass reads are in them.

    Raises:
        InvalidInputError: they differ by more than rounding.
    """
    skip = torch.ones(1, model.config.num_hidden_layers, dtype=torch.bool, device=model.device)
    skip[:, list(retained)] = False
    was_training = model.training
    with skipping_layers(model.eval(), skip):
        expected = probe_logits(model, "model before surgery").float()
    observed = probe_logits(built.eval(), "model after surgery").float()
    for either in (model, built):
        either.train(was_training)
    difference = float((observed - expected).abs().max())
    if difference > TOLERANCE[model.dtype == torch.float32] * float(expected.abs().max()):
        raise _failed(f"logits that differ by {difference:.3g} from those of the model that it was made from")


def _failed(observed: str) -> InvalidInputError:
    return InvalidInputError(
        "model after surgery", observed, "the same tensors and logits", "report it: this must not happen"
    )
