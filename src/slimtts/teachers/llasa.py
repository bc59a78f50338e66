"""The LLaSA layout: text between understanding markers, then speech codes as tokens `<|s_i|>`.

Source: arXiv 2502.04128 and the family's published template. The bundled teacher uses the same layout with its own
tokenizer. Zero-shot cloning: text = prompt text + " " + target text, and the assistant's turn starts with the
prompt's codes.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from slimtts.errors import InvalidInputError
from slimtts.teachers.base import SpeechTokenLayout

INSTRUCTION = "Convert the text to speech:"
TEXT_START, TEXT_END = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
SPEECH_START, SPEECH_END = "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>"
FIRST_SPEECH_TOKEN = "<|s_0|>"
# The Llama-3.2 template prints today's date unless it is told one: a moving prompt would move every number.
PINNED_DATE = "26 Jul 2024"


def speech_layout(tokenizer: PreTrainedTokenizerBase, num_codes: int) -> SpeechTokenLayout:
    """Reads the layout from a tokenizer.

    Raises:
        InvalidInputError: a marker is missing, or the speech tokens are not one block of `num_codes` ids.
    """
    vocabulary = tokenizer.get_vocab()
    last = f"<|s_{num_codes - 1}|>"
    missing = [
        t for t in (TEXT_START, TEXT_END, SPEECH_START, SPEECH_END, FIRST_SPEECH_TOKEN, last) if t not in vocabulary
    ]
    if missing:
        raise InvalidInputError(
            f"tokenizer {tokenizer.name_or_path}",
            f"no token {missing[0]}",
            "a tokenizer of the LLaSA family",
            "use the tokenizer folder that was published with the checkpoint",
        )
    first = vocabulary[FIRST_SPEECH_TOKEN]
    if vocabulary[last] != first + num_codes - 1:
        raise InvalidInputError(
            f"tokenizer {tokenizer.name_or_path}",
            f"{last} has id {vocabulary[last]}",
            first + num_codes - 1,
            "use the codec that belongs to this teacher",
        )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else vocabulary[SPEECH_END]
    return SpeechTokenLayout(first, num_codes, vocabulary[SPEECH_END], pad_id)


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
    if not text.strip():
        raise InvalidInputError("text", "empty", "at least one word", "give a sentence to speak")
    return _rendered(tokenizer, f"{prompt_text} {text}".strip()) + layout.to_ids(prompt_codes)


def textless_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt_codes: Sequence[int] = ()
) -> list[int]:
    """`prompt_ids` with nothing between the text markers: speech in a voice, of no text."""
    return _rendered(tokenizer, "") + layout.to_ids(prompt_codes)


def _rendered(tokenizer: PreTrainedTokenizerBase, spoken: str) -> list[int]:
    chat = [
        {"role": "user", "content": f"{INSTRUCTION}{TEXT_START}{spoken}{TEXT_END}"},
        {"role": "assistant", "content": SPEECH_START},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True, date_string=PINNED_DATE)
    ids: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return ids
