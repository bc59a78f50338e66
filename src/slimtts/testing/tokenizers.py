"""Tokenizers that read bytes and hold a family's own tokens at chosen ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def byte_tokenizer(tokens: Mapping[str, int], specials: Iterable[str], **named: Any) -> PreTrainedTokenizerFast:
    """Every byte of a text is a token; `tokens` maps further ones to their ids, those of `specials` are markers.

    `named` goes to the tokenizer, but for `chat_template`, which is set on it.
    """
    rows = max(tokens.values()) + 1
    by_id = {index: token for token, index in {**LETTERS, **tokens}.items()}
    vocabulary = {by_id.get(index, f"<unused {index}>"): index for index in range(rows)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    template = named.pop("chat_template", None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = template
    return tokenizer
