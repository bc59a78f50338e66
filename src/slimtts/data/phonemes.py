"""Text as phonemes, for teachers that read those."""

from __future__ import annotations

from functools import cache
from typing import Any

from slimtts.errors import InvalidInputError


@cache
def _espeak() -> Any:
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
        return EspeakBackend("en-us", preserve_punctuation=True, with_stress=True, language_switch="remove-flags")
    except RuntimeError as error:
        raise InvalidInputError(
            "phonemes", error, "a working espeak-ng", "install espeakng-loader again, for this system"
        ) from None


def phonemes(text: str) -> str:
    """American English in the phonetic alphabet by espeak-ng: with stress and punctuation, one space between words.

    Raises:
        InvalidInputError: the optional packages are missing or do not work.
    """
    return " ".join(_espeak().phonemize([text])[0].split())
