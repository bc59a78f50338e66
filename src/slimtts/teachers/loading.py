"""Opens a teacher by family and source, checked before the first token is generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.params import TeacherParams
from slimtts.teachers.base import Family, Teacher
from slimtts.teachers.checkpoint import hash_weights, load_tokenizer
from slimtts.teachers.cosyvoice2 import CosyVoice2Family
from slimtts.teachers.cosyvoice2_checkpoint import resolve_cosyvoice
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


def load_teacher(params: TeacherParams, with_model: bool = True) -> Teacher:
    """The teacher named in params; `with_model=False` leaves out the language model.

    Raises:
        InvalidInputError: the source gives no checkpoint, or one that does not fit the family.
    """
    folder = _checkpoint_folder(params)
    family = FAMILIES[params.family]()
    codec = family.load_codec(params.codec)
    tokenizer = load_tokenizer(folder)
    layout = family.layout(tokenizer, codec)
    model = family.load_model(folder) if with_model else None
    rows = max(layout.first_code_id + layout.num_codes, layout.end_id + 1)
    if model is not None and model.get_input_embeddings().num_embeddings < rows:
        raise InvalidInputError(
            f"checkpoint {folder}",
            f"{model.get_input_embeddings().num_embeddings} embedding rows",
            f"at least {rows}",
            "use the tokenizer of this checkpoint",
        )
    return Teacher(
        family,
        model,
        tokenizer,
        layout,
        codec,
        folder,
        hash_weights(folder),
        params.training_hours,
        params.source,
        params.revision,
        params.codec,
    )


def load_beside(teacher: Teacher, folder: Path) -> Teacher:
    """Another checkpoint of the teacher's family, with the tokenizer that lies in its folder: it may be a smaller one.

    Raises:
        InvalidInputError: no complete checkpoint of the family.
    """
    tokenizer = load_tokenizer(folder)
    layout = teacher.family.layout(tokenizer, teacher.codec)
    model, mark = teacher.family.load_model(folder), hash_weights(folder)
    return replace(teacher, model=model, tokenizer=tokenizer, layout=layout, folder=folder, weights_sha256=mark)


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
    if not (folder / "config.json").is_file():
        raise InvalidInputError(
            "teacher.source",
            params.source,
            '"bundled" or a folder with config.json',
            "correct teacher.source in params.yaml",
        )
    return folder
