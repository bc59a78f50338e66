"""Text as phonemes, for teachers that read those."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any

from slimtts.errors import InvalidInputError

# Languages in Latin letters, by espeak-ng's names. Others are refused: it reads a letter that it does not know by name
# and in English ("Chinese letter"), and Chinese and Japanese words it does not know at all.
ESPEAK_VOICES: Mapping[str, str] = {
    "cs": "cs", "da": "da", "de": "de", "en": "en-us", "es": "es", "fi": "fi", "fr": "fr-fr", "hu": "hu", "it": "it",
    "nl": "nl", "pl": "pl", "pt": "pt", "ro": "ro", "sv": "sv", "tr": "tr",
}  # fmt: skip


@cache
def _espeak(voice: str) -> Any:
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise InvalidInputError(
            "phonemes",
            f"the package {error.name} is not installed",
            "phonemizer and espeakng-loader",
            "install slimtts[neutts]",
        ) from None
    try:
        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        return EspeakBackend(voice, preserve_punctuation=True, with_stress=True, language_switch="remove-flags")
    except RuntimeError as error:
        raise InvalidInputError(
            "phonemes", error, "a working espeak-ng", "install espeakng-loader again, for this system"
        ) from None


def require_phonemes(language: str) -> None:
    """Refuses a language (ISO code) that has none here.

    Raises:
        InvalidInputError: none of `ESPEAK_VOICES`.
    """
    if language not in ESPEAK_VOICES:
        raise InvalidInputError(
            "teacher.language", f"{language}, for which there are no phonemes", ", ".join(ESPEAK_VOICES),
            "correct teacher.language, or take a teacher that reads letters",
        )  # fmt: skip


def foreign_letters(text: str) -> str:
    """The letters of a text that are not Latin, each once: none of `ESPEAK_VOICES` has phonemes for them."""
    letters = (character for character in text if unicodedata.category(character)[0] == "L")
    # A modifier letter, as the apostrophe of U+02BC, is read with the letter before it.
    return "".join(dict.fromkeys(c for c in letters if not unicodedata.name(c, "").startswith(("LATIN", "MODIFIER"))))


def phonemes(text: str, language: str) -> str:
    """The phonetic alphabet by espeak-ng: with stress and punctuation, one space between words.

    Raises:
        InvalidInputError: no phonemes for the language or for letters of the text, or the optional packages are missing
            or do not work.
    """
    require_phonemes(language)
    foreign = foreign_letters(text)
    if foreign:
        raise InvalidInputError(
            "text", f"letters without phonemes in {language}: {foreign[:20]}", "Latin letters",
            "write the text in the letters of the language",
        )  # fmt: skip
    return " ".join(_espeak(ESPEAK_VOICES[language]).phonemize([text])[0].split())
