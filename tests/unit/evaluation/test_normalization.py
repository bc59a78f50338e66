"""Golden texts: what each normalizer makes of the things that texts hold."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimtts.errors import MissingToolError
from slimtts.evaluation import normalization
from slimtts.evaluation.normalization import normalize, simplified

BASIC = [
    ("The old MAN.", "the old man"),
    ("  two\t spaces \n here  ", "two spaces here"),
    ("Don't, rock 'n' roll; the dogs' bowl", "don't rock n roll the dogs bowl"),
    ("don\u2019t", "don't"),
    ("I paid $1,000.50 in 2024!", "i paid 100050 in 2024"),
    ("well-known \u2014 yes\u2013no and/or", "well known yes no and or"),
    ("wait... what\u2026now", "wait what now"),
    ("U.S. e-mail", "us e mail"),
    ("\uff26\uff35\uff2c\uff2c \ufb01sh", "full fish"),
    ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d\u4e16\u754c"),
    ("caf\u00e9 cafe\u0301", "caf\u00e9 caf\u00e9"),
    ("zero\u200bwidth", "zerowidth"),
    ("\u201cCurly\u201d \u2018quotes\u2019 she said", "curly quotes she said"),
    ("\uff11\uff12 o\u2019clock \uff0d \uff08noon\uff09", "12 o'clock noon"),
    ("\u00c9COLE STRASSE \u0130", "\u00e9cole strasse i\u0307"),
    ("3.14 \u00bd 50% #1 @you", "314 1 2 50 1 you"),
    ("\u6771\u4eac\u30fb\uff8a\uff9d\uff76\uff9e\uff73", "\u6771\u4eac\u30cf\u30f3\u30ac\u30a6"),
    ("?!", ""),
    ("", ""),
]

SEED_TTS_EVAL = [
    ("The old MAN.", "the old man"),
    ("Don't, rock 'n' roll", "don't rock 'n' roll"),
    ("don\u2019t", "dont"),
    ("I paid $1,000.50 in 2024!", "i paid 100050 in 2024"),
    ("well-known", "wellknown"),
    ("yes - no", "yes no"),
    ("yes \u2014 no", "yes no"),
    # One pass only: four spaces become two, three become two.
    ("a    b", "a  b"),
    ("a - - b", "a  b"),
    ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d\u4e16\u754c"),
    (" edges ", " edges "),
    ("\u201cCurly\u201d \u2018quotes\u2019", "curly quotes"),
    ("\uff26\uff35\uff2c\uff2c \uff11\uff12\uff0e", "\uff46\uff55\uff4c\uff4c \uff11\uff12"),
    ("caf\u00e9 50% \u20ac9", "caf\u00e9 50 \u20ac9"),
    ("new\nline\ttab", "new\nline\ttab"),
    ("\u58a8\u00b7\u767d", "\u58a8\u767d"),
    ("", ""),
]

# (text, Chinese protocol of seed-tts-eval, F5-TTS's English one)
OTHERS = [
    ("KTV\uff0c\u4f60\u597d\uff01", "KTV\u4f60\u597d", "ktv\u4f60\u597d"),
    ("Don't  stop", "Don't stop", "dont stop"),
    ("don\u2019t \u2014 rock 'n' roll!", "dont rock 'n' roll", "dont rock n roll"),
    ("a - - b", "a  b", "a  b"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "expected"), BASIC)
def test_basic(text, expected):
    assert normalize(text, "basic") == expected


@pytest.mark.parametrize(("text", "expected"), SEED_TTS_EVAL)
def test_seed_tts_eval(text, expected):
    assert normalize(text, "seed_tts_eval") == expected


@given(st.text(alphabet=st.characters(max_codepoint=0x24F)))
def test_basic_is_stable(text):
    once = normalize(text, "basic")
    assert normalize(once, "basic") == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(("text", "in_chinese", "of_f5"), OTHERS)
def test_the_other_protocols(text, in_chinese, of_f5):
    assert (normalize(text, "seed_tts_eval_zh"), normalize(text, "f5_tts")) == (in_chinese, of_f5)


@given(st.text())
def test_the_protocols_differ_in_apostrophes_and_case_alone(text):
    english = normalize(text, "seed_tts_eval")
    assert normalize(text, "seed_tts_eval_zh").lower() == english
    assert normalize(text.replace("'", ""), "seed_tts_eval") == normalize(text, "f5_tts")


def test_traditional_characters_become_simplified_ones():
    assert simplified("\u6f22\u8a9e KTV 12") == "\u6c49\u8bed KTV 12"
    assert simplified("\u6c49\u8bed") == "\u6c49\u8bed"


def test_without_opencc_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opencc", None)
    normalization._to_simplified.cache_clear()
    with pytest.raises(MissingToolError, match=r"slimtts\[chinese\]"):
        simplified("\u6f22")
