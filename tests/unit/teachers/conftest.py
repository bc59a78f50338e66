"""Tokenizers with a family's own tokens at chosen ids, and codecs that are only a number of codes."""

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@pytest.fixture(scope="session")
def tokenizer_of():
    """Every byte of a text is a token; `tokens` maps further ones to their ids, those of `specials` are markers."""

    def build(tokens, specials, **named):
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

    return build


@pytest.fixture(scope="session")
def codec_of():
    return lambda num_codes: SimpleNamespace(num_codes=num_codes, sample_rate_hz=16_000, frame_rate_hz=50.0)
