"""Counts against hand-made alignments, and the edges: nothing said, nothing expected, too much said."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_errors import WordErrors, corpus_wer, count_word_errors, failed, mean_wer, metric_of


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", WordErrors(3, 0, 0, 0)),
        ("the cat sat", "the dog sat", WordErrors(2, 1, 0, 0)),
        ("the cat sat", "the sat", WordErrors(2, 0, 1, 0)),
        ("the cat sat", "the big cat sat", WordErrors(3, 0, 0, 1)),
        ("The cat, sat.", "the CAT sat", WordErrors(3, 0, 0, 0)),
        ("a", "b", WordErrors(0, 1, 0, 0)),
        ("the cat sat", "", WordErrors(0, 0, 3, 0)),
        ("the cat sat", "?!", WordErrors(0, 0, 3, 0)),
        ("", "some words", WordErrors(0, 0, 0, 2)),
        ("...", "", WordErrors(0, 0, 0, 0)),
    ],
)
def test_counts(reference, hypothesis, expected):
    assert count_word_errors(reference, hypothesis, "basic") == expected


def test_the_normalizer_decides():
    assert count_word_errors("well-known", "well known", "basic").errors == 0
    assert count_word_errors("well-known", "well known", "seed_tts_eval").errors == 2
    # What one pass over spaces leaves is no word.
    assert count_word_errors("a    b", " a b ", "seed_tts_eval") == WordErrors(2, 0, 0, 0)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("\u4f60\u597d\u4e16\u754c", "\u4f60\u597d\u4e16\u754c\u3002", WordErrors(4, 0, 0, 0)),
        ("\u4f60\u597d\uff0c\u4e16\u754c", "\u4f60 \u5f88\u597d \u4e16", WordErrors(3, 0, 1, 1)),
        ("KTV\u5728\u54ea", "K\u5728\u54ea", WordErrors(3, 0, 2, 0)),  # letters count one by one
        ("\u4f60\u597d", "", WordErrors(0, 0, 2, 0)),
        ("", "\u4f60\u597d", WordErrors(0, 0, 0, 2)),
    ],
)
def test_characters_are_counted_where_nobody_writes_spaces(reference, hypothesis, expected):
    assert count_word_errors(reference, hypothesis, "seed_tts_eval_zh", "CER") == expected


def test_the_language_decides_what_is_counted():
    assert [metric_of(language) for language in ("en", "zh", "ja", "ko", "de", "th")] == [
        "WER", "CER", "CER", "WER", "WER", "CER",
    ]  # fmt: skip


def test_rates_of_one_utterance():
    babble = WordErrors(hits=1, substitutions=1, deletions=0, insertions=8)
    assert babble.reference_words == 2
    assert babble.errors == 9
    assert babble.wer == 4.5
    assert babble.capped_wer == 1.0
    assert WordErrors(3, 1, 0, 0).capped_wer == 0.25


def test_an_empty_reference_costs_one_a_word():
    assert WordErrors(0, 0, 0, 0).wer == 0.0
    assert WordErrors(0, 0, 0, 3).wer == 3.0
    assert WordErrors(0, 0, 0, 3).capped_wer == 1.0


def test_a_failure_loses_every_word():
    assert failed("The cat sat.", "basic") == WordErrors(0, 0, 3, 0)
    assert failed("The cat sat.", "basic").wer == 1.0


def test_rates_over_utterances():
    utterances = [WordErrors(9, 1, 0, 0), WordErrors(0, 2, 0, 4), failed("one two", "basic")]
    assert corpus_wer(utterances) == pytest.approx(9 / 14)
    assert mean_wer(utterances) == pytest.approx((0.1 + 3.0 + 1.0) / 3)
    assert mean_wer(utterances, capped=True) == pytest.approx(2.1 / 3)


@pytest.mark.parametrize("rate", [corpus_wer, mean_wer])
def test_no_utterances_are_refused(rate):
    with pytest.raises(InvalidInputError, match="0 utterances"):
        rate([])
