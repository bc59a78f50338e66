"""NeuTTS Air: Qwen2 that reads phonemes between text markers and speaks NeuCodec's codes as tokens `<|speech_i|>`.

Source: the published inference code of NeuTTS Air. Zero-shot cloning: phonemes of the prompt's text, a space, those of
the target; the prompt's codes come right after the start of speech.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from slimtts.codec.base import SpeechCodec
from slimtts.codec.neucodec import NeuCodec
from slimtts.data.phonemes import foreign_letters, phonemes, require_phonemes
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Family, Prompt, SpeechTokenLayout, check_text, layout_from_vocabulary
from slimtts.teachers.sources import resolve_codec

USER, ASSISTANT = "user: Convert the text to speech:", "\nassistant:"
TEXT_START, TEXT_END = "<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>"
SPEECH_START, SPEECH_END = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>"
CODEC = "neuphonic/neucodec"


class NeuTtsFamily(Family):
    """NeuTTS Air and its students."""

    name = "neutts"
    license = "Apache-2.0"
    # As the makers' inference code samples. 15 seconds at 50 codes a second, and END.
    decoding: ClassVar[Mapping[str, float]] = {"temperature": 1.0, "top_k": 50, "max_new_tokens": 751}

    def __init__(self, language: str = "en") -> None:
        self.language = language  # of its phonemes

    def in_language(self, language: str) -> Family:
        """The same with the phonemes of another language.

        Raises:
            InvalidInputError: a language without phonemes.
        """
        require_phonemes(language)
        return NeuTtsFamily(language)

    def unreadable(self, text: str) -> str:
        """Letters without phonemes."""
        return foreign_letters(text)

    @property
    def training_hours(self) -> float:
        """Unknown.

        Raises:
            InvalidInputError: always; the teacher can state them.
        """
        raise InvalidInputError(
            "teacher.training_hours",
            "none, and the makers of NeuTTS Air have published none",
            "hours of speech, more than 0",
            "set teacher.training_hours to the hours that subset_data.max_share is to be a share of",
        )

    def load_codec(self, source: str) -> SpeechCodec:
        """NeuCodec in the format of transformers."""
        return NeuCodec.load(resolve_codec(source, CODEC))

    def layout(self, tokenizer: PreTrainedTokenizerBase, codec: SpeechCodec) -> SpeechTokenLayout:
        """Where speech lives in the vocabulary.

        Raises:
            InvalidInputError: a marker is missing, or the speech tokens are not one block of the codec's codes.
        """
        codes = [f"<|speech_{code}|>" for code in range(codec.num_codes)]
        return layout_from_vocabulary(tokenizer, "NeuTTS", (TEXT_START, TEXT_END, SPEECH_START), SPEECH_END, codes)

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, text: str, prompt: Prompt
    ) -> list[int]:
        """The zero-shot prompt.

        Raises:
            InvalidInputError: `text` is empty, or no phonemes can be made of it.
        """
        check_text(text)
        spoken = [phonemes(part, self.language) for part in (prompt.text, text) if part.strip()]
        return _laid_out(tokenizer, " ".join(spoken)) + layout.to_ids(prompt.codes)

    def textless_prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt
    ) -> list[int]:
        """The zero-shot prompt with nothing between the text markers."""
        return _laid_out(tokenizer, "") + layout.to_ids(prompt.codes)


def _laid_out(tokenizer: PreTrainedTokenizerBase, phones: str) -> list[int]:
    turn = f"{USER}{TEXT_START}{phones}{TEXT_END}{ASSISTANT}{SPEECH_START}"
    ids: list[int] = tokenizer.encode(turn, add_special_tokens=False)
    return ids
