"""Checkpoints of language models: safetensors only, complete, and named by the hash of their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from slimtts.errors import InvalidInputError


def hash_weights(folder: Path) -> str:
    """SHA-256 over the safetensors files of a checkpoint, in name order.

    Raises:
        InvalidInputError: the folder holds no safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InvalidInputError(
            f"checkpoint {folder}",
            "no *.safetensors file",
            "a folder written by save_pretrained",
            "convert the weights to safetensors or correct the path",
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_language_model(folder: Path) -> Any:
    """A causal language model in fp32 and eval mode; strict: every tensor of the architecture must be there.

    Raises:
        InvalidInputError: the checkpoint is truncated, incomplete, or belongs to another architecture.
    """
    hash_weights(folder)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", use_safetensors=True, output_loading_info=True, local_files_only=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"checkpoint {folder}",
            str(error).splitlines()[0],
            "a complete safetensors checkpoint",
            "copy or train the checkpoint again",
        ) from None
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise InvalidInputError(
            f"checkpoint {folder}",
            f"{len(wrong)} tensors missing or unexpected, first {wrong[0]}",
            "exactly the tensors of its config.json",
            "copy or train the checkpoint again",
        )
    return model.eval()
