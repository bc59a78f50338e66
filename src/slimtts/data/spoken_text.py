"""May this text be spoken? One answer for the command line, manifests and lists, voices, and requests alike.

What the loaded model's own tokenizer makes of a text is checked where one is at hand: `Teacher.prompt_ids`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from slimtts.data.texts import words_of
from slimtts.errors import InvalidInputError

LONGEST_AT_ONCE = 500  # characters that a model is asked to speak
LONGEST_IN_CORPUS = 2_000  # over a minute of speech: no utterance of a corpus is as long
MOST_MARKS = 8  # on one letter; Hebrew with cantillation and Tibetan need 5
SHOWN_CHARACTERS = 60
NEXT_STEP = "correct this text or leave it out"

# Of any family, and what sentencepiece calls its own; compared with the text as normalisation may rewrite it.
CONTROL_TOKEN = re.compile(r"<\|(?:[^<>|]*\|>)?|<custom_token_\d*>?|</?s>|<(?:unk|pad|bos|eos|mask)>")
# What reorders, hides or annotates the characters around it. Joiners and marks of direction are not among them:
# Persian, Indic, Arabic and Hebrew texts need those.
HIDING = re.compile(r"[\u202a-\u202e\u2061-\u2064\u2066-\u206f\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f]")
NO_CHARACTER = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")  # but tab and line ends
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")  # letters by their class, nothing by their look


@dataclass(frozen=True)
class TextFault:
    """Why a text cannot be spoken."""

    observed: str
    allowed: str

    def error(self, what: str) -> InvalidInputError:
        """As it is told, whichever door the text came through."""
        return InvalidInputError(what, self.observed, self.allowed, NEXT_STEP)


def text_fault(text: str) -> TextFault | None:
    """What is wrong with a text that is to be spoken or was; None when nothing is."""
    if not text.strip():
        return TextFault("empty", "text with at least one word")
    if len(text) > LONGEST_IN_CORPUS:
        return _too_long(text)
    return _bad_character(text) or _control_token(text) or _wordless(text)


def control_token_fault(token: str) -> TextFault:
    """A text names a token that means something to the model."""
    return TextFault(f"control token '{token[:SHOWN_CHARACTERS]}'", "text without control tokens")


def check_spoken_text(text: str, what: str = "text") -> None:
    """Refuses what no model should be given as text, be it of a corpus or of a voice.

    Raises:
        InvalidInputError: too long, without a word, or with control tokens or characters that are none of a text.
    """
    fault = text_fault(text)
    if fault is not None:
        raise fault.error(what)


def check_text_to_speak(text: str, what: str = "text") -> None:
    """As `check_spoken_text`, for a text that is to be spoken now, at once.

    Raises:
        InvalidInputError: as `check_spoken_text`, or longer than `LONGEST_AT_ONCE`.
    """
    check_spoken_text(text, what)
    if len(text) > LONGEST_AT_ONCE:
        raise _too_long(text).error(what)


def has_words(text: str) -> bool:
    """Is there a letter or a digit that is more than a blank?"""
    letters = "".join(words_of(text))
    return any(unicodedata.category(letter)[0] in "LN" and letter not in BLANK_LETTERS for letter in letters)


def _too_long(text: str) -> TextFault:
    allowed = (
        f"at most {LONGEST_AT_ONCE} to speak at once, {LONGEST_IN_CORPUS} in a row of a corpus; sentence by sentence"
    )
    return TextFault(f"{len(text)} characters", allowed)


def _bad_character(text: str) -> TextFault | None:
    for pattern, kind, allowed in (
        (HALF_CHARACTER, "half a character", "whole characters, as UTF-8 has them"),
        (NO_CHARACTER, "control character", "text without control characters"),
        (HIDING, "invisible character", "text without characters that hide or reorder others"),
    ):
        seen = pattern.search(text)
        if seen:
            return TextFault(f"{kind} U+{ord(seen.group()):04X}", allowed)
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character)[0] == "M" else 0
        if marks > MOST_MARKS:
            return TextFault(f"more than {MOST_MARKS} marks on one letter", "letters as they are written")
    return None


def _control_token(text: str) -> TextFault | None:
    # As a tokenizer's normalisation may make it: compatible forms, no accents, nothing invisible, no capitals.
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    named = CONTROL_TOKEN.search(text) or CONTROL_TOKEN.search(plain) or CONTROL_TOKEN.search(plain.lower())
    return control_token_fault(named.group()) if named else None


def _wordless(text: str) -> TextFault | None:
    return None if has_words(text) else TextFault(f"'{text[:SHOWN_CHARACTERS]}'", "text with at least one word")
