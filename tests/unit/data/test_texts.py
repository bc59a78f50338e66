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
        "\u4f60",
        "\u597d",
    )


def test_where_no_spaces_are_written_letters_are_the_words_of_a_vocabulary() -> None:
    assert words_of("KTV\u5728\u54ea\uff1f") == ("ktv", "\u5728", "\u54ea")
    assert words_of("\u30c6\u30fb\u3067") == ("\u30c6", "\u3067"), "the dot between is no letter"
    assert words_of("\u30c6\u30ec\u30d3\u3067") == tuple("\u30c6\u30ec\u30d3\u3067")
    assert text_key("\u4f60 \u597d") == text_key("\u4f60\u597d")
    assert words_of("\uc548\ub155 \ud558\uc138\uc694") == ("\uc548\ub155", "\ud558\uc138\uc694"), "Korean has spaces"
    assert words_of("...\u3002\uff01") == ()


def test_different_words_have_different_keys() -> None:
    assert text_key("the golden island") != text_key("the golden islands")


def test_punctuation_alone_is_no_word() -> None:
    assert words_of("... -- !?") == ()
