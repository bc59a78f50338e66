"""Text as it is before words are counted; scores under different normalizers must not be compared."""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache
from typing import Any, Literal

from slimtts.errors import MissingToolError
from slimtts.params import NORMALIZER_LANGUAGE

Normalizer = Literal["basic", "seed_tts_eval", "seed_tts_eval_zh", "f5_tts", "whisper_en"]

_APOSTROPHES = re.compile("[\u2018\u2019\u02bc]")
_SEPARATORS = re.compile(r"\.{2,}|[-/\u2010-\u2015\u2044\u2212]")
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")

# seed-tts-eval deletes ASCII punctuation but ' together with the marks of Chinese typesetting, those of zhon 2.0.2, its
# current version then. They hold the typographic apostrophe (U+2019), both long dashes and the ideographic space:
# "don\u2019t" is read as "dont". F5-TTS's evaluation deletes ' too (read in its sources, 2026-11-21).
_TYPESETTING = "".join(
    chr(code)
    for first, last in (
        (0x00B7, 0x00B7), (0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0x3000, 0x3003),
        (0x3008, 0x3011), (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F), (0xFE4F, 0xFE4F), (0xFE51, 0xFE51),
        (0xFE54, 0xFE54), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64),
    )
    for code in range(first, last + 1)
)  # fmt: skip
_F5_TTS_DELETED = str.maketrans("", "", string.punctuation + _TYPESETTING)
_SEED_TTS_EVAL_DELETED = str.maketrans("", "", string.punctuation.replace("'", "") + _TYPESETTING)


def normalizer_for(language: str, normalizer: Normalizer) -> Normalizer:
    """The normaliser as it is asked for, where it is one of `language` (ISO code); `basic` where it is another's.

    A benchmark may be in another language than the data that heal: its protocol must not judge these.
    """
    return normalizer if NORMALIZER_LANGUAGE.get(normalizer, language) == language else "basic"


def normalize(text: str, normalizer: Normalizer) -> str:
    """Text whose words, split at spaces, are compared.

    `basic`: NFKC, lower case; dashes, slashes and runs of dots part words, other punctuation and symbols vanish, an
    apostrophe stays inside a word ("U.S." = "us", "well-known" = "well known"); single spaces.
    `seed_tts_eval`: that benchmark's English protocol, to be comparable with published numbers: punctuation but ' is
    deleted ("well-known" = "wellknown"), two spaces become one in a single pass, lower case.
    `seed_tts_eval_zh`: its Chinese one: the same, but case stays. `f5_tts`: of F5-TTS's LibriSpeech-PC: as the
    English one, and ' is deleted too ("don't" = "dont").
    `whisper_en`: the English one of Whisper's paper (arXiv 2212.04356, appendix C) as transformers has it, without its
    table of British spellings: numbers in digits, contractions and titles written out; fillers and what is between
    brackets vanish.
    No other spells out numbers, and Chinese without spaces counts as one word: count its characters.
    """
    if normalizer == "whisper_en":
        return str(_whisper_english()(text)).strip()
    if normalizer != "basic":
        deleted = _F5_TTS_DELETED if normalizer == "f5_tts" else _SEED_TTS_EVAL_DELETED
        kept = text.translate(deleted).replace("  ", " ")
        return kept if normalizer == "seed_tts_eval_zh" else kept.lower()
    text = unicodedata.normalize("NFKC", text).lower()
    text = _SEPARATORS.sub(" ", _APOSTROPHES.sub("'", text))
    kept = "".join(c for c in text if c == "'" or not _is_mark(c))
    return " ".join(_OUTER_APOSTROPHE.sub("", kept).split())


def _is_mark(character: str) -> bool:
    """Punctuation, symbols and invisible format characters."""
    category = unicodedata.category(character)
    return category[0] in "PS" or category == "Cf"


def simplified(text: str) -> str:
    """Chinese in simplified characters, which recognisers mix with traditional ones; by OpenCC's t2s.

    Raises:
        MissingToolError: the extra `chinese` is not installed.
    """
    converted: str = _to_simplified().convert(text)
    return converted


@cache
def _whisper_english() -> Any:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


@cache
def _to_simplified() -> Any:
    try:
        from opencc import OpenCC
    except ImportError:
        raise MissingToolError("opencc", "transcripts of Chinese need it", "pip install 'slimtts[chinese]'") from None
    return OpenCC("t2s")
