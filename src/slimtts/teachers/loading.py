"""Opens a teacher by family and source, checked before the first token is generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from slimtts.bounded_call import bounded_call
from slimtts.codec.base import SpeechCodec
from slimtts.errors import InvalidInputError
from slimtts.model_files import hash_weights, refuse_adapter, stored_tensors, unchanged
from slimtts.model_weights import EMBEDDING
from slimtts.params import TeacherParams
from slimtts.teachers.base import Family, Prompt, SpeechTokenLayout, Teacher
from slimtts.teachers.checkpoint import load_tokenizer, one_line
from slimtts.teachers.cosyvoice2 import CosyVoice2Family
from slimtts.teachers.cosyvoice2_checkpoint import resolve_cosyvoice
from slimtts.teachers.detection import check_family
from slimtts.teachers.llasa import LlasaFamily
from slimtts.teachers.nano import NanoFamily, bundle_folder
from slimtts.teachers.neutts import NeuTtsFamily
from slimtts.teachers.orpheus import OrpheusFamily
from slimtts.teachers.sources import resolve_checkpoint

FAMILIES: dict[str, type[Family]] = {
    "nano": NanoFamily,
    "llasa": LlasaFamily,
    "neutts": NeuTtsFamily,
    "orpheus": OrpheusFamily,
    "cosyvoice2": CosyVoice2Family,
}

# What a tokenizer is tried with: letters, digits, marks, other scripts, and a long word.
ANY_TEXT = f"So it is, {'a' * 60} 1234567890 \u00e9\u00fc\u4f60\u597d?! {' ' * 20}'\"<|x|>{'ab ' * 80}"


def load_teacher(params: TeacherParams, with_model: bool = True) -> Teacher:
    """The teacher named in params; `with_model=False` leaves out the language model.

    Raises:
        InvalidInputError: the family cannot read the language, or the source gives no checkpoint that fits it.
    """
    family = FAMILIES[params.family]().in_language(params.language)
    folder = _checkpoint_folder(params)
    codec = family.load_codec(params.codec)
    tokenizer, layout, model, mark = _opened(folder, family, codec, with_model)
    return Teacher(
        family,
        model,
        tokenizer,
        layout,
        codec,
        folder,
        mark,
        params.training_hours,
        params.source,
        params.revision,
        params.codec,
        params.language,
    )


def load_beside(teacher: Teacher, folder: Path) -> Teacher:
    """Another checkpoint of the teacher's family, with the tokenizer that lies in its folder: it may be a smaller one.

    Raises:
        InvalidInputError: no complete checkpoint of the family.
    """
    check_family(folder, teacher.family.name)
    tokenizer, layout, model, mark = _opened(folder, teacher.family, teacher.codec)
    return replace(teacher, model=model, tokenizer=tokenizer, layout=layout, folder=folder, weights_sha256=mark)


def _opened(
    folder: Path, family: Family, codec: SpeechCodec, with_model: bool = True
) -> tuple[PreTrainedTokenizerBase, SpeechTokenLayout, Any, str]:
    """Tokenizer, layout, model (or None) and hash of one state of the folder, which fit each other."""
    with unchanged(folder):
        tensors = stored_tensors(folder)
        tokenizer = load_tokenizer(folder)
        layout = family.layout(tokenizer, codec)
        if EMBEDDING in tensors:
            _check_rows(folder, tokenizer, layout, tensors[EMBEDDING].shape[0])
        what = f"tokenizer {folder}"
        with one_line(what, f"one that makes prompts of family {family.name}", "copy it from the makers' checkpoint"):
            bounded_call(what, lambda: len(tokenizer.encode(ANY_TEXT, add_special_tokens=False)))
            family.textless_prompt_ids(tokenizer, layout, Prompt())
        model = family.load_model(folder) if with_model else None
        if model is not None:
            _check_speech_rows(folder, model, layout)
        return tokenizer, layout, model, hash_weights(folder)


def _check_rows(folder: Path, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, rows: int) -> None:
    """Refuses a tokenizer that has tokens which the model has no row for."""
    needed = max(layout.first_code_id + layout.num_codes, layout.end_id + 1)
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows < max(needed, last + 1):
        which = f" for token {token[:40]!r}, id {last}" if last >= needed else ""
        raise InvalidInputError(
            f"checkpoint {folder}", f"{rows} embedding rows{which}", f"at least {max(needed, last + 1)}",
            "use the tokenizer of this checkpoint, or resize its embeddings to it and train them",
        )  # fmt: skip


def _check_speech_rows(folder: Path, model: Any, layout: SpeechTokenLayout) -> None:
    """Refuses a model that holds only zeros where its codes are: nobody has trained it to speak."""
    first, count = layout.first_code_id, layout.num_codes
    for name, weight, start in (
        ("embedding", model.get_input_embeddings().weight, first),
        ("head", model.get_output_embeddings().weight, first - layout.first_head_id),
    ):
        if not bool(weight[start : start + count].any()):
            raise InvalidInputError(
                f"checkpoint {folder}", f"only zeros in the {name} rows of all {count} codes", "rows that were trained",
                "copy or train the checkpoint again",
            )  # fmt: skip


def _checkpoint_folder(params: TeacherParams) -> Path:
    if params.source == "bundled":
        if params.family != "nano":
            raise InvalidInputError(
                "teacher.source",
                f"'bundled' for family {params.family}",
                "a folder or a hub id: only nano is bundled",
                "correct teacher.source or teacher.family in params.yaml",
            )
        return bundle_folder() / "teacher"
    resolve = resolve_cosyvoice if params.family == CosyVoice2Family.name else resolve_checkpoint
    folder = resolve(params.source, params.revision)
    refuse_adapter(folder)
    check_family(folder, params.family)
    if not (folder / "config.json").is_file():
        raise InvalidInputError(
            "teacher.source",
            params.source,
            '"bundled" or a folder with config.json',
            "correct teacher.source in params.yaml",
        )
    return folder
