"""CosyVoice 2's `llm.pt` into a checkpoint of one id space, and a student back into a folder that CosyVoice opens.

CosyVoice builds its model from `CosyVoice-BlankEN/config.json` and then loads llm.pt strictly; cosyvoice2.yaml says
nothing of the depth, so a student needs only another llm.pt and another config.json there.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, Qwen2Config

from slimtts.errors import InvalidInputError
from slimtts.model_files import LICENSE_FILES, check_archive, check_inside, check_tree, read_object, weight_files
from slimtts.model_weights import check_weights
from slimtts.storage import atomic_path
from slimtts.teachers.checkpoint import load_tokenizer, one_line, save_tokenizer
from slimtts.teachers.cosyvoice2_model import PROMPT_ROWS, ROWS_AFTER_CODES, CosyVoice2Config, CosyVoice2ForCausalLM
from slimtts.teachers.detection import COSYVOICE_QWEN, COSYVOICE_RECIPES, COSYVOICE_WEIGHTS, shown_families
from slimtts.teachers.model_folder import copy_license
from slimtts.teachers.sources import resolve_checkpoint

LLM, QWEN = COSYVOICE_WEIGHTS, COSYVOICE_QWEN
HUB_FILES = (LLM, *COSYVOICE_RECIPES, f"{QWEN}/*.json", f"{QWEN}/*.txt", *LICENSE_FILES)
BODY = "llm.model."
SIGNS_OF_OTHERS = (("text_encoder.", "CosyVoice 1"),)  # starts of tensors that only a relative has
ROWS_OF_3 = 6761  # of CosyVoice 3's speech_embedding: 6,561 codes and 200 more
MOST_SHARING = 2  # tensors may lie over each other, as a tied head and its embedding do
TEXT, TEXT_HEAD = "llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"
PROMPT, SPEECH, HEAD = "llm_embedding.weight", "speech_embedding.weight", "llm_decoder."
LAYERS = "llm.model.model.layers."
TABLE = "model.embed_tokens.weight"
# What CosyVoice adds to Qwen's tokenizer before it reads a text (cosyvoice/tokenizer/tokenizer.py, QwenTokenizer).
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    "<|im_start|> <|im_end|> <|endofprompt|> [breath] <strong> </strong> [noise] [laughter] [cough] [clucking] "
    "[accent] [quick_breath] <laughter> </laughter> [hissing] [sigh] [vocalized-noise] [lipsmack] [mn]"
).split()
SIZES = "cosyvoice2"  # key of the tokenizer's configuration: the sizes of the id space


def _incomplete(path: Path, observed: object) -> InvalidInputError:
    return InvalidInputError(str(path), observed, "the files of CosyVoice2-0.5B", "fetch the folder again")


def read_llm_pt(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a CosyVoice folder's llm.pt, in their order; nothing in it is executed.

    Raises:
        InvalidInputError: missing, truncated, more than tensors and numbers, or not of this model.
    """
    path = check_inside(folder, folder / LLM)
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise _incomplete(path, (str(error).strip() or type(error).__name__).splitlines()[0]) from None
    # CosyVoice's own training adds the numbers of epoch and step.
    state = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    for name in (TEXT, PROMPT, SPEECH, HEAD + "weight", HEAD + "bias"):
        if name not in state:
            relative = next((of for sign, of in SIGNS_OF_OTHERS if any(key.startswith(sign) for key in state)), "")
            if not relative and len(state.get(SPEECH, ())) == ROWS_OF_3:
                relative = "CosyVoice 3"
            raise _incomplete(path, f"{relative}, which is not supported" if relative else f"no tensor {name}")
    if sum(tensor.nbytes for tensor in state.values()) > MOST_SHARING * path.stat().st_size:
        raise _incomplete(path, f"{len(state)} tensors that are larger than the file")
    if len(state[PROMPT]) != PROMPT_ROWS or len(state[SPEECH]) != len(state[HEAD + "weight"]):
        sizes = {name: tuple(state[name].shape) for name in (PROMPT, SPEECH, HEAD + "weight")}
        raise _incomplete(path, sizes)
    return state


def _qwen_config(folder: Path) -> dict[str, Any]:
    path = folder / QWEN / "config.json"
    return read_object(check_inside(folder, path) if path.exists() else path)


def joined(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """llm.pt's tensors under the names of `CosyVoice2ForCausalLM`. The unused text head is left out."""
    of_body = {n.removeprefix(BODY): t for n, t in state.items() if n.startswith(BODY) and n not in (TEXT, TEXT_HEAD)}
    of_head = {f"lm_head.{n.removeprefix(HEAD)}": t for n, t in state.items() if n.startswith(HEAD)}
    return {TABLE: torch.cat([state[TEXT], state[PROMPT], state[SPEECH]]), **of_body, **of_head}


def _tokenizer(folder: Path, text_rows: int, speech_rows: int) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(folder / QWEN)
    tokenizer.add_special_tokens(
        {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "extra_special_tokens": SPECIAL_TOKENS}
    )
    if len(tokenizer) > text_rows:
        raise _incomplete(folder / QWEN, f"{len(tokenizer)} tokens for {text_rows} text embeddings")
    tokenizer.init_kwargs[SIZES] = {"text_rows": text_rows, "num_codes": speech_rows - ROWS_AFTER_CODES}
    return tokenizer


def convert_llm_pt(folder: Path, cache: Path | None = None) -> Path:
    """A CosyVoice folder as a checkpoint: safetensors, config.json and tokenizer, all tensors bit for bit.

    It lies below `cache`, or beside `folder`, under a name with the hash of llm.pt, and is made once.

    Raises:
        InvalidInputError: the folder is not a complete CosyVoice 2.
    """
    shown_families(folder)
    check_inside(folder, folder / LLM)
    try:
        with (folder / LLM).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _incomplete(folder / LLM, error.strerror) from None
    folder = folder.resolve()
    out = (cache or folder.parent) / f"{folder.name}-slimtts-{digest[:16]}"
    if out.is_dir():
        return out
    state, qwen = read_llm_pt(folder), _qwen_config(folder)
    if qwen.get("tie_word_embeddings") and not torch.equal(state.get(TEXT_HEAD, state[TEXT]), state[TEXT]):
        raise _incomplete(folder / LLM, f"{TEXT_HEAD} that differs from the embedding it is tied to")
    text_rows, speech_rows = len(state[TEXT]), len(state[SPEECH])
    layers = len({name[len(LAYERS) :].split(".")[0] for name in state if name.startswith(LAYERS)})
    if qwen.get("num_hidden_layers") != layers:
        stated = str(qwen.get("num_hidden_layers"))[:40]
        raise _incomplete(folder / QWEN / "config.json", f"num_hidden_layers {stated} for {layers} layers in {LLM}")
    with one_line(str(folder / QWEN / "config.json"), "the files of CosyVoice2-0.5B", "fetch the folder again"):
        sizes = {k: v for k, v in qwen.items() if k not in ("model_type", "architectures", "num_labels")}
        known = Qwen2Config(**sizes).to_dict()
    known |= {"vocab_size": text_rows + PROMPT_ROWS + speech_rows, "tie_word_embeddings": False}
    known |= {"bos_token_id": None, "eos_token_id": None, "architectures": [CosyVoice2ForCausalLM.__name__]}
    known.pop("model_type")
    with atomic_path(out) as tmp:
        tmp.mkdir()
        save_file(joined(state), tmp / "model.safetensors", metadata={"format": "pt"})
        with one_line(str(folder), "the files of CosyVoice2-0.5B", "fetch the folder again"):
            CosyVoice2Config(**known, speech_rows=speech_rows).save_pretrained(tmp)
        save_tokenizer(_tokenizer(folder, text_rows, speech_rows), tmp)
        copy_license(folder, tmp)
    return out


def resolve_cosyvoice(source: str, revision: str) -> Path:
    """A checkpoint from CosyVoice's folder or hub id, or from a folder that already is one, a student's for instance.

    Raises:
        InvalidInputError: neither, or an incomplete one.
    """
    folder = resolve_checkpoint(source, revision, files=HUB_FILES)
    if not (folder / LLM).is_file():
        return folder
    if Path(source).is_dir():
        return convert_llm_pt(folder)
    from huggingface_hub.constants import HF_HOME

    return convert_llm_pt(folder, Path(HF_HOME) / "slimtts")


def split(joint: dict[str, torch.Tensor], original: dict[str, torch.Tensor], num_layers: int) -> dict[str, Any]:
    """The reverse of `joined`: llm.pt's names, order and types as in `original`, without the layers that were cut.

    Raises:
        InvalidInputError: the student lacks a tensor of the original.
    """
    text, speech = original[TEXT].shape[0], original[SPEECH].shape[0]
    parts = dict(zip((TEXT, PROMPT, SPEECH), joint[TABLE].split([text, PROMPT_ROWS, speech]), strict=True))
    state: dict[str, torch.Tensor] = {}
    for name, tensor in original.items():
        if name.startswith(LAYERS) and int(name[len(LAYERS) :].split(".")[0]) >= num_layers:
            continue
        if name == TEXT_HEAD:
            # Tied to the embedding; one that is not is never used.
            state[name] = state[TEXT] if torch.equal(tensor, original[TEXT]) else tensor
            continue
        own = name.replace(HEAD, "lm_head.") if name.startswith(HEAD) else name.removeprefix(BODY)
        value = parts[name] if name in parts else joint.get(own)
        if value is None:
            raise InvalidInputError("student", f"no tensor {own}", "a student of this teacher", "prune it again")
        state[name] = value.to(tensor.dtype).clone()  # a view would be saved with the whole table behind it
    return state


def _link(source: str, target: str) -> None:
    """A hard link costs nothing; across file systems, a copy."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def export_llm_pt(student_folder: Path, cosyvoice_folder: Path, out: Path) -> Path:
    """A folder that CosyVoice opens: the student's llm.pt and Qwen config, every other file as in the teacher's.

    What CosyVoice derives from llm.pt (llm.*.zip, vllm/) is left out; it makes them anew.

    Raises:
        InvalidInputError: the student is not one of this teacher's, or a folder is incomplete.
    """
    check_weights(student_folder)
    check_tree(cosyvoice_folder)
    config = CosyVoice2Config.from_pretrained(student_folder, local_files_only=True)
    original, qwen = read_llm_pt(cosyvoice_folder), _qwen_config(cosyvoice_folder)
    joint: dict[str, torch.Tensor] = {}
    for file in weight_files(student_folder):
        joint |= load_file(file)
    table = sum(len(original[name]) for name in (TEXT, PROMPT, SPEECH))
    if TABLE not in joint or len(joint[TABLE]) != table:
        rows = len(joint.get(TABLE, ()))
        raise InvalidInputError(
            f"student {student_folder}", f"{rows} embedding rows", table, "name the CosyVoice folder it was cut from"
        )
    state = split(joint, original, config.num_hidden_layers)
    of_layers = {k for k, v in qwen.items() if isinstance(v, list) and len(v) == qwen["num_hidden_layers"]}
    qwen |= {name: getattr(config, name) for name in ("num_hidden_layers", "intermediate_size", *of_layers)}
    with atomic_path(out) as tmp:
        tmp.mkdir()
        for path in cosyvoice_folder.iterdir():
            if path.is_dir() and path.name not in (QWEN, "vllm"):
                shutil.copytree(path, tmp / path.name, copy_function=_link)
            elif path.is_file() and not path.match("llm.*"):
                _link(str(path), str(tmp / path.name))
        weights = shutil.ignore_patterns("config.json", "*.safetensors*", "*.bin*")
        shutil.copytree(cosyvoice_folder / QWEN, tmp / QWEN, copy_function=_link, ignore=weights)
        (tmp / QWEN / "config.json").write_text(json.dumps(qwen, indent=2))
        # CosyVoice fills the model with these before llm.pt: of the student's width, or it could not.
        body = {n.removeprefix(BODY): t for n, t in state.items() if n.startswith(BODY) and n != TEXT_HEAD}
        save_file(body, tmp / QWEN / "model.safetensors", metadata={"format": "pt"})
        torch.save(state, tmp / LLM)
    return out
