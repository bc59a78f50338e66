"""Orpheus: Llama whose turns are a text and its speech, 7 SNAC codes a frame as tokens `<custom_token_i>`.

A voice is given in the two ways that the makers of Orpheus have published: a preceding turn that holds a prompt's
text and codes, as the pretrained model reads it, or the name of one of the fine-tuned model's own speakers in front
of the text. A speaker of somebody's data may be called Dan too: who wants Orpheus' own Dan says "orpheus:dan".
Source: README and notebooks of Orpheus TTS; the ids are those of its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from slimtts.codec.base import SpeechCodec
from slimtts.codec.snac import CODES_A_FRAME, WEIGHTS, SnacCodec
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Family, Prompt, SpeechTokenLayout, check_text, layout_from_vocabulary
from slimtts.teachers.sources import resolve_codec

TEXT_START, TEXT_END = "<|begin_of_text|>", "<|eot_id|>"  # 128000, 128009
SPEECH_START, SPEECH_END = "<custom_token_1>", "<custom_token_2>"  # 128257, 128258
HUMAN_START, HUMAN_END = "<custom_token_3>", "<custom_token_4>"  # 128259, 128260
SPEAKER_START, SPEAKER_END = "<custom_token_5>", "<custom_token_6>"  # 128261, 128262
MARKERS = (TEXT_START, TEXT_END, SPEECH_START, HUMAN_START, HUMAN_END, SPEAKER_START, SPEAKER_END)
FIRST_CODE = 10  # <custom_token_10> is 128266
VOICES = ("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe")
BUILT_IN = "orpheus:"  # before the name of a voice in VOICES
CODEC = "hubertsiuzdak/snac_24khz"


class OrpheusFamily(Family):
    """Orpheus 3B and its students."""

    name = "orpheus"
    license = "Apache-2.0"
    # As the makers' examples sample; without a penalty speech may never end. 15 seconds at 82 codes a second, and END.
    decoding: ClassVar[Mapping[str, float]] = {
        "temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 1232,
    }  # fmt: skip

    @property
    def training_hours(self) -> float:
        """English, of the pretrained model: "100k+" in its README."""
        return 100_000.0

    def load_codec(self, source: str) -> SpeechCodec:
        """SNAC at 24 kHz."""
        return SnacCodec.load(resolve_codec(source, CODEC, ("config.json", *WEIGHTS)))

    def layout(self, tokenizer: PreTrainedTokenizerBase, codec: SpeechCodec) -> SpeechTokenLayout:
        """Where speech lives in the vocabulary.

        Raises:
            InvalidInputError: a marker is missing, or the speech tokens are not one block of the codec's codes.
        """
        codes = [f"<custom_token_{FIRST_CODE + code}>" for code in range(codec.num_codes)]
        return layout_from_vocabulary(tokenizer, "Orpheus", MARKERS, SPEECH_END, codes)

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, text: str, prompt: Prompt
    ) -> list[int]:
        """The turn to speak; a voice that is not built in speaks its prompt in a turn before.

        Raises:
            InvalidInputError: `text` is empty, or no such voice is built in.
        """
        check_text(text)
        return _prompted(tokenizer, layout, prompt, prompt.text, text)

    def textless_prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt
    ) -> list[int]:
        """The same turns with no words in them."""
        return _prompted(tokenizer, layout, prompt, "", "")


def built_in_voice(prompt: Prompt) -> str:
    """The speaker of the model that a prompt asks for, or "": by "orpheus:NAME", or by NAME where it holds no speech.

    Raises:
        InvalidInputError: "orpheus:" before a name that is none of `VOICES`.
    """
    if prompt.voice.startswith(BUILT_IN):
        name = prompt.voice.removeprefix(BUILT_IN)
        if name not in VOICES:
            allowed = ", ".join(f"{BUILT_IN}{voice}" for voice in VOICES)
            raise InvalidInputError("voice", prompt.voice, allowed, "name one of these")
        return name
    return prompt.voice if prompt.voice in VOICES and not prompt.codes else ""


def _prompted(
    tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt, said: str, text: str
) -> list[int]:
    voice = built_in_voice(prompt)
    if voice:
        return _turn(tokenizer, f"{voice}: {text}".rstrip())
    # What follows a frame's end must be a frame's start, here too.
    codes = prompt.codes[: len(prompt.codes) // CODES_A_FRAME * CODES_A_FRAME]
    if not codes:
        return _turn(tokenizer, text)
    end = [layout.end_id, *_ids(tokenizer, [SPEAKER_END])]
    return _turn(tokenizer, said) + layout.to_ids(codes) + end + _turn(tokenizer, text)


def _turn(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    before = _ids(tokenizer, [HUMAN_START, TEXT_START])
    after = _ids(tokenizer, [TEXT_END, HUMAN_END, SPEAKER_START, SPEECH_START])
    return before + tokenizer.encode(text, add_special_tokens=False) + after


def _ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    return ids
