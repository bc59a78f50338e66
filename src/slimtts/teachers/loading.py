"""Opens a teacher by family and source, checked before the first token is generated."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from slimtts.errors import InvalidInputError
from slimtts.params import TeacherParams
from slimtts.teachers.base import Family, Teacher
from slimtts.teachers.checkpoint import hash_weights
from slimtts.teachers.nano import NanoFamily, bundle_folder

FAMILIES: dict[str, type[Family]] = {"nano": NanoFamily}


def load_teacher(params: TeacherParams, with_model: bool = True) -> Teacher:
    """The teacher named in params; `with_model=False` leaves out the language model.

    Raises:
        InvalidInputError: no such folder, or a checkpoint that does not fit the family.
    """
    folder = bundle_folder() / "teacher" if params.source == "bundled" else Path(params.source)
    if not (folder / "config.json").is_file():
        raise InvalidInputError(
            "teacher.source",
            params.source,
            '"bundled" or a folder with config.json',
            "correct teacher.source in params.yaml",
        )
    family = FAMILIES[params.family]()
    codec = family.load_codec(params.codec)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    layout = family.layout(tokenizer, codec)
    model = family.load_model(folder) if with_model else None
    rows = layout.first_code_id + layout.num_codes
    if model is not None and model.get_input_embeddings().num_embeddings < rows:
        raise InvalidInputError(
            f"checkpoint {folder}",
            f"{model.get_input_embeddings().num_embeddings} embedding rows",
            f"at least {rows}",
            "use the tokenizer of this checkpoint",
        )
    return Teacher(family, model, tokenizer, layout, codec, folder, hash_weights(folder))
