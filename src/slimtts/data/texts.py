"""When do two texts say the same, and which words does a text hold?"""

from __future__ import annotations

import unicodedata
from functools import cache

# Scripts of languages that are written without spaces: every letter is a word, as in their error rates.
SPACELESS = ("CJK ", "HIRAGANA ", "KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
APOSTROPHES = "'\u2018\u2019\u02bc"


@cache
def _spoken(character: str) -> str:
    if character in APOSTROPHES:
        return ""
    # Letters, numbers, and the marks that Indic and other scripts put on letters.
    if unicodedata.category(character)[0] not in "LNM":
        return " "
    return f" {character} " if unicodedata.name(character, "").startswith(SPACELESS) else character


def words_of(text: str) -> tuple[str, ...]:
    """Words of a text in order, without case, punctuation and apostrophes; letters where no spaces are written."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple("".join(_spoken(character) for character in folded).split())


def text_key(text: str) -> str:
    """Equal for texts that a listener could not tell apart; splits are disjoint by it."""
    return " ".join(words_of(text))
