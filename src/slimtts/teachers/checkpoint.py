"""Checkpoints of language models: the one door through which a folder becomes a model, and back.

Safetensors only, complete, of the sizes that they state, finite, named by the hash of their weights, no code run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from slimtts.errors import InvalidInputError
from slimtts.model_files import LARGEST_TEXT_BYTES, WEIGHTS, hash_weights, model_files, stored_tensors, unchanged
from slimtts.model_weights import EMBEDDING, HEAD, check_finite, check_numbers, differs
from slimtts.teachers.config_check import CONFIG, check_values, fitting_config
from slimtts.teachers.eight_bits import check_quantization, expected_version

__all__ = ["check_tokenizer_files", "hash_weights", "load_language_model", "load_tokenizer", "one_line",
           "probe_logits", "save_language_model", "save_tokenizer"]  # fmt: skip

SAME = 1e-4  # of the greatest logit: rounding in fp32
PROBE_IDS = 8  # tokens of the pass that shows whether a model works at all
TOKENIZER_CONFIG = "tokenizer_config.json"
# Of the families' bodies. Others can be told to make any number of tokens.
TOKENIZERS = {
    None, "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer", "GPT2TokenizerFast",
    "LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast",
}  # fmt: skip


@contextmanager
def one_line(what: str, allowed: str, next_step: str) -> Iterator[None]:
    """Whatever a library raises about a stranger's file, as the one line that a person gets.

    Raises:
        InvalidInputError: in place of it.
    """
    try:
        yield
    except InvalidInputError:
        raise
    except BaseException as error:
        # The parsers written in Rust end with a panic, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InvalidInputError(what, reason, allowed, next_step) from None


def load_language_model(folder: Path) -> Any:
    """A causal language model in fp32 and eval mode; strict: every tensor of the architecture must be there.

    8-bit weights stay as they are stored. Nothing of the model lies in the file any more: who writes there later does
    not change it. A head that is stored beside the embedding is used, whatever config.json says of tying.

    Raises:
        InvalidInputError: the checkpoint is truncated, incomplete, of other sizes than it states, not finite, belongs
            to another architecture, leaves its folder, changed while it was read, or is quantised in a way that
            `slimtts quantize` does not write.
    """
    what, again = f"checkpoint {folder}", "copy or train the checkpoint again"
    with one_line(what, "a complete safetensors checkpoint", again), unchanged(folder):
        tensors = stored_tensors(folder)
        is_quantised = check_quantization(folder)
        config = fitting_config(folder, tensors, is_quantised)
        check_numbers(folder, tensors)
        if config.tie_word_embeddings and HEAD in tensors and differs(tensors, HEAD, EMBEDDING):
            config.tie_word_embeddings = False  # surgery and save_pretrained go by it
        with expected_version():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype="float32", use_safetensors=True, output_loading_info=True,
                local_files_only=True, trust_remote_code=False,
            )  # fmt: skip
        if is_quantised or any(tensor.dtype == "F32" for tensor in tensors.values()):
            _take_from_file(model)
    wrong = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise InvalidInputError(
            what,
            f"{len(wrong)} tensors missing or unexpected, first {wrong[0]}",
            "exactly the tensors of its config.json",
            again,
        )
    model.eval()
    with one_line(what, "a model that computes", again):
        probe_logits(model, what)
    return model


def _take_from_file(model: nn.Module) -> None:
    """Copies weights that are still the file's own pages, which a later writer would change."""
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in copies:
                copies[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(module, name, copies[id(parameter)])


@torch.inference_mode()
def probe_logits(model: Any, what: str) -> torch.Tensor:
    """Logits [1, T, V] of a few fixed tokens.

    Raises:
        InvalidInputError: not all of them are finite.
    """
    rows = model.get_input_embeddings().num_embeddings
    ids = torch.arange(PROBE_IDS, device=model.device)[None] * 7919 % rows
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    check_finite(f"{what}, logits", logits)
    return logits


def save_language_model(model: Any, folder: Path) -> None:
    """Writes a standard checkpoint, all that is not 8 bit in fp16, and proves that it opens as the same model.

    `model` is on the CPU and in fp16 afterwards. config.json states the rotary embedding in the keys of transformers 5
    and of 4.57, each of which passes over the other's.

    Raises:
        InvalidInputError: a weight is beyond fp16's range, or what was written does not open as it should.
    """
    model.to("cpu")
    for name, tensor in model.state_dict().items():
        is_plain = type(tensor) is torch.Tensor and tensor.is_floating_point()
        if is_plain and not torch.isfinite(tensor.half()).all():
            raise InvalidInputError(
                f"tensor {name}", f"values up to {float(tensor.abs().max()):.3g}", "at most 65504, as fp16 can hold",
                "train with a lower learning rate",
            )  # fmt: skip
    is_quantised = getattr(model, "hf_quantizer", None) is not None
    expected = None if is_quantised else _logits_of_fp16(model)
    model.half().save_pretrained(folder)
    path = folder / CONFIG
    path.write_text(json.dumps(for_all_readers(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")
    what = f"checkpoint {folder}"
    observed = probe_logits(load_language_model(folder), what)
    if expected is not None and float((observed - expected).abs().max()) > SAME * float(expected.abs().max()):
        raise InvalidInputError(
            what, "other logits than those of the model that was written", "the same", "report it: this must not happen"
        )


def _logits_of_fp16(model: Any) -> torch.Tensor | None:
    """The probe's logits with all weights rounded to fp16, which they are then; None for a model in 16 bit.

    Such a one has its rotary frequencies in 16 bit too, and says something else than what is read from a file.
    """
    if model.dtype != torch.float32:
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    attention, was_training = model.config._attn_implementation, model.training
    model.set_attn_implementation("sdpa")  # as a model is opened; that of a training may need a GPU
    logits = probe_logits(model.eval(), "model to be written")
    model.set_attn_implementation(attention)
    model.train(was_training)
    return logits


def for_all_readers(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 with `rope_theta` and `rope_scaling` beside `rope_parameters`."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return config
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    is_plain = scaling.get("rope_type", "default") == "default"
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": None if is_plain else scaling}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer in the words that transformers 4.57 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):  # 4.57 wants names for these, 5 reads both
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_tokenizer_files(folder: Path) -> None:
    """Refuses files of a tokenizer that are too large, lie elsewhere, or ask for a class that no family has.

    Raises:
        InvalidInputError: names the file.
    """
    for path in model_files(folder):
        if not path.match(WEIGHTS) and path.stat().st_size > LARGEST_TEXT_BYTES:
            raise InvalidInputError(
                f"tokenizer {path}", f"{path.stat().st_size} bytes", f"at most {LARGEST_TEXT_BYTES}", "copy it again"
            )
    path = folder / TOKENIZER_CONFIG
    if not path.is_file():
        return
    values = json.loads(path.read_text(encoding="utf-8"))
    asked = values.get("tokenizer_class") if isinstance(values, dict) else "a file that is no JSON object"
    if asked not in TOKENIZERS:
        raise InvalidInputError(
            f"tokenizer {folder}", f"tokenizer_class {str(asked)[:60]}",
            f"one of {', '.join(sorted(filter(None, TOKENIZERS)))}", "copy the tokenizer again, from its makers",
        )  # fmt: skip


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; code that its files name is refused without asking.

    Raises:
        InvalidInputError: the files are missing or damaged, or want code to be run.
    """
    what, allowed = f"tokenizer {folder}", "the tokenizer files of a checkpoint, without code"
    with one_line(what, allowed, "copy the checkpoint again"), unchanged(folder), warnings.catch_warnings():
        check_tokenizer_files(folder)
        if (folder / CONFIG).exists():  # from which transformers takes the kind of tokenizer
            check_values(folder)
            check_quantization(folder)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return tokenizer
