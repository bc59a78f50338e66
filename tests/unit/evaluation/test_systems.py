"""One system's numbers: what a judge did not give is missing and seen by the gate, never a number."""

import math

import pytest

from slimtts.evaluation.systems import (
    SpokenItem,
    SystemOutput,
    compare,
    other_voice_similarity,
    other_voices,
    summarize,
)
from slimtts.evaluation.word_errors import WordErrors
from slimtts.results import SpeedResult

SPEED = SpeedResult(lm_rtf=1, end_to_end_rtf=1, tokens_per_s=1, latency_p50_s=1, latency_p95_s=1, peak_memory_mb=1)


def item(place, similarity=0.8, mos=3.0, other=None):
    return SpokenItem(f"u{place}", "a b", "a b", WordErrors(2, 0, 0, 0), True, 1.0, similarity, mos, other)


def output(name, similarities, scores):
    items = [item(i, s, m) for i, (s, m) in enumerate(zip(similarities, scores, strict=True))]
    return SystemOutput(name, 4, 9, items, SPEED)


def test_each_sentence_is_compared_with_the_next_one_in_another_voice():
    assert other_voices(["a", "a", "b", "a"]) == [2, 2, 3, 2]
    assert other_voices(["a", "b"]) == [1, 0]
    assert other_voices(["a", "a"]) == [None, None]
    assert other_voices([]) == []


def test_likeness_to_other_voices_is_a_mean_over_those_that_have_one():
    assert other_voice_similarity([item(0, other=0.5), item(1, other=0.6), item(2)]) == pytest.approx(0.55)
    assert other_voice_similarity([item(0), item(1)]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_missing(bad):
    good, broken = output("teacher", [0.8, 0.7], [3.0, 3.1]), output("student", [0.8, bad], [bad, 3.0])
    told = summarize(broken, "toy", 100, 1)
    assert math.isnan(told.similarity.value) and math.isnan(told.mos.low)
    assert summarize(good, "toy", 100, 1).similarity.value == pytest.approx(0.75)
    for pair in ((broken, good), (good, broken)):
        gap = compare(*pair, 100, 1)
        assert math.isnan(gap.similarity.value) and math.isnan(gap.mos.low)
        assert gap.wer_points.value == 0.0


def test_what_was_not_rated_is_missing():
    silent = output("student", [0.8, 0.7], [None, None])
    assert math.isnan(summarize(silent, "toy", 100, 1).mos.value)
    assert math.isnan(compare(silent, silent, 100, 1).mos.value)
