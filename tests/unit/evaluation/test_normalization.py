"""Golden texts: what each normalizer makes of the things that texts hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimtts.evaluation.normalization import normalize

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
    ("", ""),
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
