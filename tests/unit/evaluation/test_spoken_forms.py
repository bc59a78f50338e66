"""Readings that a filter must take for perfect, and those that it must not."""

import pytest

from slimtts.evaluation.normalization import normalize
from slimtts.evaluation.spoken_forms import count_spoken_errors
from slimtts.evaluation.word_errors import count_word_errors

SAME = [
    ("Mr. Brown paid fifty dollars.", "Mister Brown paid $50."),
    ("It cost two hundred and five pounds.", "It cost £205."),
    ("in nineteen eighty four", "in 1984"),
    ("the first of May", "the 1st of May"),
    ("May twenty-first", "May 21st"),
    ("three point five percent", "3.5%"),
    ("at ten thirty", "at 10:30"),
    ("at ten thirty a.m.", "At 10:30 AM."),
    ("at nine o'clock", "at 9:00"),
    ("Dr. Smith lives on Main St.", "Doctor Smith lives on Main Street."),
    ("St. John's", "Saint John's"),
    ("number five", "No. 5"),
    ("the U.S. army", "the US army"),
    ("a thousand men", "1,000 men"),
    ("salt and pepper", "salt & pepper"),
    ("cats versus dogs, et cetera", "Cats vs. dogs, etc."),
    ("one half of it", "1/2 of it"),
    ("He (the man) left", "He, the man, left."),
    ("don't go", "do not go"),
    ("call five five five one two three four", "Call 555-1234."),
    ("café", "cafe"),
]
DIFFERENT = [
    ("fifty dollars", "£50", 1),
    ("fifty dollars", "$15", 1),
    ("Mr. Brown", "Mrs. Brown", 1),
    ("he left", "um, he left", 1),
    ("he left", "he (uh) left", 1),
    ("he left <laugh>", "he left", 1),
    ("the first of May", "the 2nd of May", 1),
    ("No. 5", "no 6", 2),
    ("we can go", "we can't go", 1),
    ("go", "", 1),
]


@pytest.mark.parametrize(("text", "heard"), SAME)
def test_a_perfect_reading_has_no_errors(text, heard):
    assert count_spoken_errors(text, heard).errors == 0


@pytest.mark.parametrize(("text", "heard", "errors"), DIFFERENT)
def test_an_error_stays_an_error(text, heard, errors):
    assert count_spoken_errors(text, heard).errors == errors


def test_most_of_these_are_errors_by_the_plain_convention():
    assert sum(count_word_errors(text, heard, "basic").errors > 0 for text, heard in SAME) >= 15


def test_whispers_normaliser_is_a_choice_of_its_own():
    assert normalize("Mr. Brown (aside) paid fifty dollars, um, twice.", "whisper_en") == "mister brown paid $50 twice"
    assert count_word_errors("fifty-one men", "51 men", "whisper_en").errors == 0
