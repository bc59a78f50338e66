"""Checkpoints of language models: safetensors only, complete, named by the hash of their weights, no code run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from slimtts.errors import InvalidInputError
from slimtts.storage import files_sha256
from slimtts.teachers.eight_bits import check_quantization, expected_version


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
    return files_sha256(files)


def load_language_model(folder: Path) -> Any:
    """A causal language model in fp32 and eval mode; strict: every tensor of the architecture must be there.

    8-bit weights stay as they are stored.

    Raises:
        InvalidInputError: the checkpoint is truncated, incomplete, belongs to another architecture, or is quantised
            in a way that `slimtts quantize` does not write.
    """
    hash_weights(folder)
    check_quantization(folder)
    try:
        with expected_version():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype="float32", use_safetensors=True, output_loading_info=True, local_files_only=True,
                trust_remote_code=False,
            )  # fmt: skip
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; code that its files name is refused without asking.

    Raises:
        InvalidInputError: the files are missing or damaged, or want code to be run.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInputError(
            f"tokenizer {folder}",
            (str(error).strip() or type(error).__name__).splitlines()[0],
            "the tokenizer files of a checkpoint, without code",
            "copy the checkpoint again",
        ) from None
    return tokenizer
