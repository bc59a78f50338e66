"""The LLaSA layout: text between understanding markers, then speech codes as tokens `<|s_i|>`.

Source: arXiv 2502.04128 and the family's published template. The bundled teacher uses the same layout with its own
tokenizer. Zero-shot cloning: text = prompt text + " " + target text, and the assistant's turn starts with the
prompt's codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from slimtts.bounded_call import bounded_call
from slimtts.codec.base import SpeechCodec
from slimtts.codec.xcodec2 import Xcodec2Codec
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Family, Prompt, SpeechTokenLayout, check_text, layout_from_vocabulary
from slimtts.teachers.sources import resolve_codec

INSTRUCTION = "Convert the text to speech:"
TEXT_START, TEXT_END = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
SPEECH_START, SPEECH_END = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>"
# The Llama-3.2 template prints today's date unless it is told one: a moving prompt would move every number.
PINNED_DATE = "26 Jul 2024"
CODEC = "HKUSTAudio/xcodec2-hf"
SENTINELS = ("so it is.", 'WAS 1 {{ x }} <b>? "a" \\n')  # two texts that a template must treat alike
# tokenizer -> its template, and what that puts around a text.
_FRAMES: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str, tuple[str, str]]] = WeakKeyDictionary()


def speech_layout(tokenizer: PreTrainedTokenizerBase, num_codes: int) -> SpeechTokenLayout:
    """Reads the layout from a tokenizer.

    Raises:
        InvalidInputError: a marker is missing, or the speech tokens are not one block of `num_codes` ids.
    """
    codes = [f"<|s_{code}|>" for code in range(num_codes)]
    beyond = f"<|s_{num_codes}|>"
    if beyond in tokenizer.get_vocab():
        raise InvalidInputError(
            f"tokenizer {tokenizer.name_or_path}", f"a token {beyond}", f"{num_codes} codes, as the codec has",
            "name the family and the codec of this checkpoint",
        )  # fmt: skip
    return layout_from_vocabulary(tokenizer, "LLaSA", (TEXT_START, TEXT_END, SPEECH_START), SPEECH_END, codes)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    layout: SpeechTokenLayout,
    text: str,
    prompt_text: str = "",
    prompt_codes: Sequence[int] = (),
) -> list[int]:
    """Everything before the first code that is to be spoken.

    Raises:
        InvalidInputError: `text` is empty.
    """
    check_text(text)
    return _rendered(tokenizer, f"{prompt_text} {text}".strip()) + layout.to_ids(prompt_codes)


def textless_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt_codes: Sequence[int] = ()
) -> list[int]:
    """`prompt_ids` with nothing between the text markers: speech in a voice, of no text."""
    return _rendered(tokenizer, "") + layout.to_ids(prompt_codes)


def _rendered(tokenizer: PreTrainedTokenizerBase, spoken: str) -> list[int]:
    before, after = _frame(tokenizer)
    ids: list[int] = tokenizer.encode(f"{before}{spoken}{after}", add_special_tokens=False)
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before and after a text. It is run for two texts only, where it can do no harm.

    Raises:
        InvalidInputError: there is no template, it fails, never ends, or changes the text.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise InvalidInputError(
            f"tokenizer {tokenizer.name_or_path}", "no chat template", "chat_template.jinja, or one in its settings",
            "copy it from the checkpoint that this one was trained from",
        )  # fmt: skip
    known = _FRAMES.get(tokenizer)
    if known is None or known[0] != template:
        what = f"chat template of tokenizer {tokenizer.name_or_path}"
        frames = bounded_call(what, lambda: [_around(tokenizer, text) for text in SENTINELS])
        if frames[0] != frames[1]:
            raise InvalidInputError(
                what, "other words around another text", "a frame that stays", "copy it from the makers' checkpoint"
            )
        known = _FRAMES[tokenizer] = (template, (frames[0][0], frames[0][1]))
    return known[1]


def _around(tokenizer: PreTrainedTokenizerBase, spoken: str) -> list[str]:
    chat = [
        {"role": "user", "content": f"{INSTRUCTION}{TEXT_START}{spoken}{TEXT_END}"},
        {"role": "assistant", "content": SPEECH_START},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True, date_string=PINNED_DATE)
    before, text, after = rendered.partition(f"{TEXT_START}{spoken}{TEXT_END}")
    if not text:
        raise ValueError("it does not hold the text between its markers")
    return [before + TEXT_START, TEXT_END + after]


class LlasaFamily(Family):
    """The published LLaSA models, Llama with X-codec2's 65,536 codes as tokens, and their students."""

    name = "llasa"
    license = "CC-BY-NC-4.0"
    # The makers sample at temperature 0.8 to 0.9. 15 seconds at 50 codes a second, and END.
    decoding: ClassVar[Mapping[str, float]] = {"temperature": 0.8, "max_new_tokens": 751}

    @property
    def training_hours(self) -> float:
        """Chinese and English, as the model cards say; 160,000 of them are published as tokens."""
        return 250_000.0

    def load_codec(self, source: str) -> SpeechCodec:
        """X-codec2 in the format of transformers."""
        return Xcodec2Codec.load(resolve_codec(source, CODEC))

    def layout(self, tokenizer: PreTrainedTokenizerBase, codec: SpeechCodec) -> SpeechTokenLayout:
        """Where speech lives in the vocabulary."""
        return speech_layout(tokenizer, codec.num_codes)

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, text: str, prompt: Prompt
    ) -> list[int]:
        """The zero-shot prompt."""
        return prompt_ids(tokenizer, layout, text, prompt.text, prompt.codes)

    def textless_prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt
    ) -> list[int]:
        """The zero-shot prompt with an empty text."""
        return textless_prompt_ids(tokenizer, layout, prompt.codes)
