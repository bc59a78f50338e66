"""Were two English texts read alike, however they are written? "Mr. Ott paid $50" and "mister ott paid fifty dollars".

A measuring convention may count such a pair as errors, the same way for every system; a filter of training speech may
not. Numbers and titles by Whisper's English normaliser (`transformers`), more abbreviations here.
"""

from __future__ import annotations

import re

from slimtts.evaluation.normalization import normalize
from slimtts.evaluation.word_errors import WordErrors, align_words

# Whisper's normaliser drops what is between brackets, and fillers: said or not said, both must be counted here.
_BRACKETS = re.compile(r"[\[\]()<>{}]")
_FILLERS = re.compile(r"\b(hmm|mm|mhm|mmm|uh|um)\b", re.IGNORECASE)
_BEFORE = tuple(
    (re.compile(pattern, re.IGNORECASE), spoken)
    for pattern, spoken in (
        (r"\bnos?\.\s*(?=\d)", "number "),
        (r"\ba (?=(hundred|thousand|million|billion)\b)", "one "),
        (r"&", " and "),
        (r"\betc\b\.?", "et cetera"),
        (r"\bvs\b\.?", "versus"),
        (r"\bave\.", "avenue"),
        (r"\bmt\.", "mount"),
        (r"\b1/2\b|\u00bd", "one half"),
        (r"\b1/4\b|\u00bc", "one quarter"),
        (r"\b3/4\b|\u00be", "three quarters"),
        (r"\b(\d{1,2}):00\b", r"\1 o'clock"),
    )
)
_AFTER = re.compile(r"\b(street|saint)\b")  # both are written St.


def spoken_form(text: str) -> str:
    """Words as Whisper's English normaliser leaves them, after abbreviations that it does not know."""
    text = _FILLERS.sub(r"\1x", _BRACKETS.sub(" ", text))
    for pattern, spoken in _BEFORE:
        text = pattern.sub(spoken, text)
    return " ".join(_AFTER.sub("st", normalize(text, "whisper_en")).split())


def count_spoken_errors(reference: str, hypothesis: str) -> WordErrors:
    """Word errors between spoken forms; none where only spaces differ ("10 30" and "1030", "u s" and "us")."""
    expected, transcript = spoken_form(reference), spoken_form(hypothesis)
    if expected.replace(" ", "") == transcript.replace(" ", ""):
        transcript = expected
    return align_words(expected, transcript)
