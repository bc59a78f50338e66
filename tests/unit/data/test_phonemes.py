"""Phonemes by espeak where it is installed, and one line where it is not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from slimtts.data import phonemes as module
from slimtts.data.phonemes import phonemes
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
    assert phonemes("so  it is.") == "SO IT IS."
    assert phonemes("yes.") == "YES."
    assert told == {"library": "lib.so", "data": "data"}
    options = {"preserve_punctuation": True, "with_stress": True, "language_switch": "remove-flags"}
    assert asked == [("en-us", options)]  # once for both texts


@pytest.mark.parametrize("absent", ["espeakng_loader", "phonemizer"])
def test_a_missing_package_is_told_in_one_line(monkeypatch, absent):
    install(monkeypatch, lambda *_, **__: None)
    for name in [name for name in sys.modules if name.split(".")[0] == absent]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInputError, match=rf"{absent}.* is not installed; .*install slimtts\[neutts\]"):
        phonemes("so.")


def test_a_broken_espeak_is_told_in_one_line(monkeypatch):
    def backend(*_, **__):
        raise RuntimeError("failed to load\nespeak")

    install(monkeypatch, backend)
    with pytest.raises(InvalidInputError, match="phonemes: observed failed to load espeak; allowed: a working"):
        phonemes("so.")


def test_real_phonemes_have_stress_and_punctuation():
    assert phonemes("Hello there, my name  is Dave!") == "həlˈoʊ ðˈɛɹ, maɪ nˈeɪm ɪz dˈeɪv!"  # noqa: RUF001
