import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimtts.evaluation.word_errors import count_word_errors
from slimtts.report.words import mark_words, word_error_rate


@pytest.mark.parametrize(
    ("heard", "marked"),
    [
        ("the big tiger", ("substitution", "green", "big")),
        ("the tiger", ("deletion", "green", "")),
        ("the green old tiger", ("insertion", "", "old")),
    ],
)
def test_an_error_is_marked_where_it_is(heard, marked):
    words = mark_words("The green tiger.", heard, "basic")
    assert [tuple(word) for word in words if word.mark != "hit"] == [marked]
    assert words[0] == ("hit", "the", "the") and words[-1] == ("hit", "tiger", "tiger")


@pytest.mark.parametrize(("expected", "heard", "marks"), [("a b", "", ["deletion"] * 2), ("...", "x", ["insertion"])])
def test_nothing_said_and_nothing_to_say(expected, heard, marks):
    assert [word.mark for word in mark_words(expected, heard, "basic")] == marks


def test_characters_where_words_are_not_written_apart():
    assert [word.mark for word in mark_words("ab c", "abd", "basic", "CER")] == ["hit", "hit", "substitution"]


@given(
    st.lists(st.sampled_from("a b c d".split()), max_size=6), st.lists(st.sampled_from("a b c d".split()), max_size=6)
)
def test_the_marks_count_up_to_the_word_error_rate(expected, heard):
    marked = mark_words(" ".join(expected), " ".join(heard), "basic")
    counted = count_word_errors(" ".join(expected), " ".join(heard), "basic")
    assert word_error_rate(marked) == counted.wer
    assert [word.mark for word in marked].count("hit") == counted.hits
    assert [word.expected for word in marked if word.mark != "insertion"] == expected
    assert [word.heard for word in marked if word.mark != "deletion"] == heard
