"""Folders of tiny teachers: each family's real model classes, its exact special tokens, a head as published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimtts.testing.cosyvoice_folder import write_cosyvoice_folder
from slimtts.testing.tiny import tiny_model
from slimtts.testing.tokenizers import byte_tokenizer

FIRST_MARKER, FIRST_CODE = 300, 320  # ids
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True)
class TokenKind:
    """What a family adds to its text model: `markers` end with the start of speech."""

    body: Literal["llama", "qwen2"]
    markers: tuple[str, ...]
    end: str
    code_token: Callable[[int], str]


TOKEN_KINDS = {
    "llasa": TokenKind(
        "llama",
        ("<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>", "<|SPEECH_GENERATION_START|>"),
        "<|SPEECH_GENERATION_END|>",
        lambda code: f"<|s_{code}|>",
    ),
    "neutts": TokenKind(
        "qwen2",
        ("<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>", "<|SPEECH_GENERATION_START|>"),
        "<|SPEECH_GENERATION_END|>",
        lambda code: f"<|speech_{code}|>",
    ),
    "orpheus": TokenKind(
        "llama",
        ("<|begin_of_text|>", "<|eot_id|>", *(f"<custom_token_{i}>" for i in (3, 4, 5, 6, 1))),
        "<custom_token_2>",
        lambda code: f"<custom_token_{10 + code}>",
    ),
}


def write_teacher_folder(
    family: str, folder: Path, num_codes: int, tied: bool = True, padding_rows: int = 0, width: int = 32
) -> Path:
    """A checkpoint of the family in `folder`: four layers, random weights, so many embedding rows that no token has.

    CosyVoice 2 has its own head and no such rows, whatever is asked for.
    """
    if family == "cosyvoice2":
        return write_cosyvoice_folder(folder, num_codes, width=width)
    kind = TOKEN_KINDS[family]
    tokens = {token: FIRST_MARKER + place for place, token in enumerate((*kind.markers, kind.end))}
    tokens |= {kind.code_token(code): FIRST_CODE + code for code in range(num_codes)}
    specials = (*kind.markers, kind.end)
    if kind.body == "qwen2":  # transformers gives Qwen's tokenizer this token when it has none
        tokens["<|endoftext|>"] = FIRST_CODE + num_codes
        specials += ("<|endoftext|>",)
    tokenizer = byte_tokenizer(tokens, specials, chat_template=CHAT_TEMPLATE)
    tokenizer.save_pretrained(folder)
    model = tiny_model(kind.body, vocab_size=len(tokenizer) + padding_rows, tied=tied, width=width)
    model.save_pretrained(folder)
    return folder
