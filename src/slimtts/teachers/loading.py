"""Opens a teacher by family and source, checked before the first token is generated."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimtts.codec.nano_codec import NanoCodec
from slimtts.errors import InvalidInputError
from slimtts.params import TeacherParams
from slimtts.teachers import llasa
from slimtts.teachers.base import Prompt, Teacher


def bundle_folder() -> Path:
    """Where the bundled teacher's files are: teacher/, codec/, asr/, corpus/, card.json."""
    return Path(str(resources.files("slimtts"))) / "nano" / "bundle"


class NanoFamily:
    """The bundled member of the LLaSA family: LLaSA's prompt with the small codec's 4,096 codes."""

    name = "nano"

    def layout(self, tokenizer, codec) -> llasa.SpeechTokenLayout:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """Where speech lives in the vocabulary."""
        return llasa.speech_layout(tokenizer, codec.num_codes)

    def prompt_ids(self, tokenizer, layout, text: str, prompt: Prompt) -> list[int]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """LLaSA's zero-shot prompt."""
        return llasa.prompt_ids(tokenizer, layout, text, prompt.text, prompt.codes)

    def textless_prompt_ids(self, tokenizer, layout, prompt: Prompt) -> list[int]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """LLaSA's zero-shot prompt with an empty text."""
        return llasa.textless_prompt_ids(tokenizer, layout, prompt.codes)


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


def load_language_model(folder: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201
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


def load_teacher(params: TeacherParams, with_model: bool = True) -> Teacher:
    """The teacher named in params; `with_model=False` leaves out the language model.

    Raises:
        InvalidInputError: no such folder, or a checkpoint that does not fit the family.
    """
    bundle = bundle_folder()
    folder = bundle / "teacher" if params.source == "bundled" else Path(params.source)
    if not (folder / "config.json").is_file():
        raise InvalidInputError(
            "teacher.source",
            params.source,
            '"bundled" or a folder with config.json',
            "correct teacher.source in params.yaml",
        )
    codec = NanoCodec.load(bundle / "codec")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    family = NanoFamily()
    layout = family.layout(tokenizer, codec)
    model = load_language_model(folder) if with_model else None
    if model is not None and model.config.vocab_size < layout.first_code_id + layout.num_codes:
        raise InvalidInputError(
            f"checkpoint {folder}",
            f"{model.config.vocab_size} embedding rows",
            f"at least {layout.first_code_id + layout.num_codes}",
            "use the tokenizer of this checkpoint",
        )
    card = json.loads((bundle / "card.json").read_text())
    return Teacher(
        family,
        model,
        tokenizer,
        layout,
        codec,
        folder,
        hash_weights(folder),
        card["training_hours"],
        bundle / "corpus",  # codes of the one codec of this family, whoever the teacher is
    )
