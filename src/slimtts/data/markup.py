"""What families read in a text but do not speak as words: laughs, breaths, emphasis.

A text with such marks is read perfectly without a word for them, so they are no words wherever words are counted.
Sources: README of Orpheus TTS; the special tokens of CosyVoice 2's tokenizer (cosyvoice/tokenizer/tokenizer.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

MARKS: Mapping[str, tuple[str, ...]] = {
    "orpheus": ("<laugh>", "<chuckle>", "<sigh>", "<cough>", "<sniffle>", "<groan>", "<yawn>", "<gasp>"),
    "cosyvoice2": (
        "<strong>", "</strong>", "<laughter>", "</laughter>", "[accent]", "[breath]", "[clucking]", "[cough]",
        "[hissing]", "[laughter]", "[lipsmack]", "[mn]", "[noise]", "[quick_breath]", "[sigh]", "[vocalized-noise]",
    ),
}  # fmt: skip


def without_marks(text: str, family: str) -> str:
    """The text without the marks of a family; those of other families are words to it and stay."""
    marks = MARKS.get(family, ())
    return _pattern(marks).sub(" ", text) if marks else text


@cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, marks)), re.IGNORECASE)
