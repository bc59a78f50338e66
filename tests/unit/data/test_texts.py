import pytest

from slimtts.data.texts import text_key, words_of


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("The golden island.", "the  golden\tisland"),
        ("Don't stop!", "don\u2019t STOP"),
        ("caf\u00e9", "cafe\u0301"),
        ("well-known", "well known"),
        ("\uff21\uff22", "ab"),
    ],
)
def test_texts_that_sound_alike_have_one_key(left: str, right: str) -> None:
    assert text_key(left) == text_key(right) != ""


def test_other_scripts_keep_their_letters() -> None:
    assert words_of("\u0939\u093f\u0928\u094d\u0926\u0940, \u4f60\u597d\u3002") == (
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\u4f60\u597d",
    )


def test_different_words_have_different_keys() -> None:
    assert text_key("the golden island") != text_key("the golden islands")


def test_punctuation_alone_is_no_word() -> None:
    assert words_of("... -- !?") == ()
