"""Tokenizers with a family's own tokens at chosen ids, and codecs that are only a number of codes."""

from types import SimpleNamespace

import pytest

from slimtts.testing.tokenizers import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer_of():
    return byte_tokenizer


@pytest.fixture(scope="session")
def codec_of():
    return lambda num_codes: SimpleNamespace(num_codes=num_codes, sample_rate_hz=16_000, frame_rate_hz=50.0)
