"""The bundled member of the LLaSA family: LLaSA's prompt with the small codec's 4,096 codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from slimtts.codec.base import SpeechCodec
from slimtts.codec.nano_codec import NanoCodec
from slimtts.errors import InvalidInputError
from slimtts.model_files import check_inside, read_object
from slimtts.model_weights import check_weights
from slimtts.teachers import llasa
from slimtts.teachers.base import Family, Prompt, SpeechTokenLayout

MOST_CODEC_SIZE = 48_000  # of any number in the codec's configuration: its rate is the greatest


def bundle_folder() -> Path:
    """Where the bundled teacher's files are: teacher/, codec/, asr/, corpus/, card.json."""
    return Path(str(resources.files("slimtts"))) / "nano" / "bundle"


class NanoFamily(Family):
    """The bundled teacher and its students."""

    name = "nano"
    license = "Apache-2.0"
    decoding: ClassVar[Mapping[str, float]] = {}  # params.yaml was written for it

    @property
    def training_hours(self) -> float:
        """As its card says."""
        return float(json.loads((bundle_folder() / "card.json").read_text())["training_hours"])

    @property
    def corpus_folder(self) -> Path | None:
        """Codes of the one codec of this family, whoever the teacher is."""
        return bundle_folder() / "corpus"

    def load_codec(self, source: str) -> SpeechCodec:
        """The bundled codec, or a folder of the same kind."""
        folder = Path(source) if source else bundle_folder() / "codec"
        allowed = "a folder with config.json and model.safetensors of nano's codec"
        try:
            tensors = check_weights(folder)
            sizes = read_object(check_inside(folder, folder / "config.json"))
        except InvalidInputError as error:
            raise InvalidInputError(f"teacher.codec {folder}", error.observed, allowed, "correct the path") from None
        for key, value in sizes.items():
            most = len(tensors) if key.endswith("_blocks") else MOST_CODEC_SIZE
            if isinstance(value, int) and not 0 < value <= most:
                raise InvalidInputError(f"teacher.codec {folder}", f"{key} = {value}", f"1 to {most}", "copy it again")
        return NanoCodec.load(folder)

    def layout(self, tokenizer: PreTrainedTokenizerBase, codec: SpeechCodec) -> SpeechTokenLayout:
        """Where speech lives in the vocabulary."""
        return llasa.speech_layout(tokenizer, codec.num_codes)

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, text: str, prompt: Prompt
    ) -> list[int]:
        """LLaSA's zero-shot prompt."""
        return llasa.prompt_ids(tokenizer, layout, text, prompt.text, prompt.codes)

    def textless_prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt
    ) -> list[int]:
        """LLaSA's zero-shot prompt with an empty text."""
        return llasa.textless_prompt_ids(tokenizer, layout, prompt.codes)
