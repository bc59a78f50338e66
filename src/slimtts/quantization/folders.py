"""A student's folder -> the folder of a lighter variant, which opens wherever the student's does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slimtts.errors import InvalidInputError
from slimtts.model_files import SAFE_FILES, copy_files
from slimtts.quantization.sparsity import make_sparse
from slimtts.quantization.variants import Variant, variant_of
from slimtts.storage import atomic_path
from slimtts.teachers.checkpoint import load_language_model, save_language_model
from slimtts.teachers.eight_bits import check_quantization, torchao_config

OF_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")


def apply_variant(model: Any, variant: Variant, norms: Mapping[str, torch.Tensor] | None = None) -> None:
    """Changes the decoder's linear layers in place; scales are in the model's precision, all else is as it was."""
    if variant.is_sparse:
        make_sparse(model, norms)
    if variant.kind:
        from torchao.quantization import quantize_
        from transformers import TorchAoConfig
        from transformers.quantizers.auto import AutoHfQuantizer

        quantize_(model.model.layers, torchao_config(variant.kind))
        # With these two, save_pretrained writes plain tensors and says in config.json how to put them together again.
        model.config.quantization_config = TorchAoConfig(torchao_config(variant.kind))
        model.hf_quantizer = AutoHfQuantizer.from_config(model.config.quantization_config, pre_quantized=False)


def check_source(source: Path) -> None:
    """Refuses what no variant can be made of.

    Raises:
        InvalidInputError: not a checkpoint's folder, or one that is quantised already.
    """
    if not (source / "config.json").is_file():
        published = ", as CosyVoice is published" if (source / "llm.pt").is_file() else ""
        observed = f"no config.json{published}"
        raise InvalidInputError(f"model {source}", observed, "folder of a student or teacher", "correct it")
    if check_quantization(source):
        raise InvalidInputError(
            f"model {source}", "8-bit weights already", "16-bit weights", "name the folder that it was made from"
        )


def write_variant(
    source: Path, name: str, out: Path, norms: Mapping[str, torch.Tensor] | None = None, model: Any = None
) -> None:
    """The checkpoint in `source` as variant `name`, with its tokenizer, voices, origin and licence, in a new `out`.

    What is not 8 bit is stored in 16 bit, as in every student. `model` is the checkpoint's own where it is loaded
    already; it is changed. The folder is proven to load strictly.

    Raises:
        InvalidInputError: no such variant, or a source as `check_source` refuses it.
    """
    variant = variant_of(name)
    check_source(source)
    model = load_language_model(source) if model is None else model
    apply_variant(model, variant, norms)
    with atomic_path(out) as folder:
        folder.mkdir()
        copy_files(source, folder, SAFE_FILES, but=OF_WEIGHTS)
        save_language_model(model, folder)
