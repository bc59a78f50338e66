"""Phonemes by espeak where it is installed, and one line where it is not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from slimtts.data import phonemes as module
from slimtts.data.phonemes import ESPEAK_VOICES, foreign_letters, phonemes
from slimtts.errors import InvalidInputError


@pytest.fixture(autouse=True)
def fresh():
    module._espeak.cache_clear()
    yield
    module._espeak.cache_clear()


def install(monkeypatch, backend):
    """Stand-ins for both packages; returns what the wrapper was told."""
    told = {}
    wrapper = SimpleNamespace(
        set_library=lambda path: told.update(library=path), set_data_path=lambda path: told.update(data=path)
    )
    parts = {
        "espeakng_loader": {"get_library_path": lambda: "lib.so", "get_data_path": lambda: "data"},
        "phonemizer": {},
        "phonemizer.backend": {"EspeakBackend": backend},
        "phonemizer.backend.espeak": {},
        "phonemizer.backend.espeak.wrapper": {"EspeakWrapper": wrapper},
    }
    for name, members in parts.items():
        stand_in = ModuleType(name)
        vars(stand_in).update(members)
        monkeypatch.setitem(sys.modules, name, stand_in)
    return told


def test_words_are_one_space_apart_and_the_bundled_espeak_is_used(monkeypatch):
    asked = []

    def backend(language, **options):
        asked.append((language, options))
        return SimpleNamespace(phonemize=lambda texts: [f" {texts[0].upper()} \n"])

    told = install(monkeypatch, backend)
    assert phonemes("so  it is.", "en") == "SO IT IS."
    assert phonemes("yes.", "en") == "YES."
    assert told == {"library": "lib.so", "data": "data"}
    options = {"preserve_punctuation": True, "with_stress": True, "language_switch": "remove-flags"}
    assert asked == [("en-us", options)]  # once for both texts


@pytest.mark.parametrize("absent", ["espeakng_loader", "phonemizer"])
def test_a_missing_package_is_told_in_one_line(monkeypatch, absent):
    install(monkeypatch, lambda *_, **__: None)
    for name in [name for name in sys.modules if name.split(".")[0] == absent]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInputError, match=rf"{absent}.* is not installed; .*install slimtts\[neutts\]"):
        phonemes("so.", "en")


def test_a_broken_espeak_is_told_in_one_line(monkeypatch):
    def backend(*_, **__):
        raise RuntimeError("failed to load\nespeak")

    install(monkeypatch, backend)
    with pytest.raises(InvalidInputError, match="phonemes: observed failed to load espeak; allowed: a working"):
        phonemes("so.", "en")


def test_real_phonemes_have_stress_and_punctuation():
    assert phonemes("Hello there, my name  is Dave!", "en") == "həlˈoʊ ðˈɛɹ, maɪ nˈeɪm ɪz dˈeɪv!"


def test_every_language_is_read_as_itself():
    assert phonemes("Guten Tag", "de") == "ɡˈuːtən tˈɑːk"  # noqa: RUF001
    assert phonemes("Guten Tag", "en") != phonemes("Guten Tag", "de")
    assert phonemes("Bonjour, ça va?", "fr").startswith("bɔ̃ʒˈuʁ")
    for language in ESPEAK_VOICES:
        assert phonemes("radio", language), language


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "ru", "xx"])
def test_a_language_without_phonemes_is_refused(language):
    with pytest.raises(InvalidInputError, match=rf"teacher\.language: observed {language}, .*allowed: cs, da, de, en"):
        phonemes("so.", language)


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("\u4f60\u597d\u4e16\u754c", "\u4f60\u597d\u4e16\u754c"),
        ("so \u0434\u0430.", "\u0434\u0430"),
        ("\u30cf\u30ed\u30fc", "\u30cf\u30ed"),
    ],
)
def test_letters_that_would_be_read_by_name_are_refused(text, foreign):
    with pytest.raises(InvalidInputError, match="letters without phonemes in en") as error:
        phonemes(text, "en")
    assert foreign[:2] in str(error.value)


def test_latin_letters_and_signs_are_not_foreign():
    assert foreign_letters("Fa\u00e7ade, \u0141\u00f3d\u017a, Stra\u00dfe \u2014 5 \u20ac, don\u02bct \U0001f600") == ""
