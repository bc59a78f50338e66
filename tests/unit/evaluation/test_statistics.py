"""Intervals that cover what they promise, paired tests that are fair, and the same numbers under the same seed."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from slimtts.errors import InvalidInputError
from slimtts.evaluation import statistics
from slimtts.evaluation.statistics import (
    bootstrap_corpus_wer,
    bootstrap_mean,
    compare_wer,
    paired_bootstrap_mean,
    paired_bootstrap_wer_points,
    sign_flip_p_value,
)
from slimtts.evaluation.word_errors import WordErrors, corpus_wer


def spoken(rng, count, error_rate):
    words = rng.integers(3, 9, size=count)
    wrong = rng.binomial(words, error_rate)
    return [WordErrors(int(w - e), int(e), 0, 0) for w, e in zip(words, wrong, strict=True)]


def test_mean_interval_covers_the_truth_95_times_in_100():
    covered = 0
    for trial in range(400):
        values = np.random.default_rng(trial).exponential(2.0, size=120)
        interval = bootstrap_mean(values, samples=400, seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    # Standard error of 400 trials is 1.1 points; percentile intervals of skewed data cover a little less than 95 %.
    assert 0.91 <= covered / 400 <= 0.98


def test_wer_interval_covers_the_truth():
    covered = 0
    for trial in range(300):
        interval = bootstrap_corpus_wer(spoken(np.random.default_rng(trial), 150, 0.2), samples=400, seed=trial)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.91 <= covered / 300 <= 0.985


def test_values_by_hand():
    assert bootstrap_mean([1.0, 2.0, 6.0], 100, 1).value == 3.0
    errors = [WordErrors(9, 1, 0, 0), WordErrors(0, 2, 0, 4)]
    assert bootstrap_corpus_wer(errors, 100, 1).value == pytest.approx(corpus_wer(errors)) == pytest.approx(7 / 12)
    better = [WordErrors(10, 0, 0, 0), WordErrors(1, 1, 0, 0)]
    assert paired_bootstrap_wer_points(errors, better, 100, 1).value == pytest.approx(100 * (7 - 1) / 12)
    assert paired_bootstrap_mean([1.0, 2.0], [0.5, 0.5], 100, 1).value == 1.0


def test_interval_of_two_utterances_is_enumerable():
    # Resamples of {0, 1} have means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the 95 % interval is all of it.
    interval = bootstrap_mean([0.0, 1.0], 2000, 3)
    assert (interval.low, interval.high) == (0.0, 1.0)
    # Equal values leave nothing to vary.
    interval = bootstrap_mean([0.25] * 40, 200, 3)
    assert (interval.low, interval.value, interval.high) == (0.25, 0.25, 0.25)


def test_interval_narrows_with_more_utterances():
    rng = np.random.default_rng(0)
    few, many = (bootstrap_corpus_wer(spoken(rng, count, 0.2), 500, 1) for count in (50, 5000))
    assert (many.high - many.low) < 0.2 * (few.high - few.low)


def test_the_pairing_is_used():
    rng = np.random.default_rng(5)
    hard = rng.integers(0, 7, size=200)
    baseline = [WordErrors(int(7 - h), int(h), 0, 0) for h in hard]
    worse_by_one_word = [WordErrors(int(7 - h), int(h), 0, 1) for h in hard]
    interval = paired_bootstrap_wer_points(worse_by_one_word, baseline, 500, 1)
    assert interval.low == pytest.approx(100 / 7) == pytest.approx(interval.high)
    similarity = paired_bootstrap_mean(hard + 0.5, hard, 500, 1)
    assert (similarity.low, similarity.high) == (0.5, 0.5)


def test_swapping_the_systems_mirrors_the_interval():
    rng = np.random.default_rng(8)
    words = rng.integers(3, 9, size=100)
    first, second = (
        [WordErrors(int(w - e), int(e), 0, 0) for w, e in zip(words, rng.binomial(words, rate), strict=True)]
        for rate in (0.1, 0.3)
    )
    forth = paired_bootstrap_wer_points(first, second, 1000, 2)
    back = paired_bootstrap_wer_points(second, first, 1000, 2)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert forth.high < 0
    same = paired_bootstrap_wer_points(first, first, 1000, 2)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_p_value_equals_the_enumeration():
    differences = np.array([0.4, -0.1, 0.3, 0.5, 0.2, 0.35, -0.05, 0.15])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean([s >= abs(differences.sum()) - 1e-12 for s in sums])
    assert sign_flip_p_value(differences, 20_000, 1) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p_value(differences, 5000, 1) == sign_flip_p_value(-differences, 5000, 1)


def test_p_value_is_uniform_when_nothing_differs():
    p_values = [sign_flip_p_value(np.random.default_rng(t).normal(size=60), 300, t) for t in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_p_value_is_never_zero_and_ties_are_one():
    assert sign_flip_p_value([1.0] * 200, 999, 1) == 1 / 1000
    assert sign_flip_p_value([0.0] * 20, 999, 1) == 1.0


def test_interval_and_p_value_are_of_one_statistic():
    # 15 sentences of 8 words with one error more, 4 of 3 words with one error fewer, 181 alike. The signs of 19 equal
    # differences are 19 coins: a sum of 11 or more needs 15 heads. The mean of the sentences' rates gives p = 0.2.
    ours = [*[WordErrors(7, 1, 0, 0)] * 15, *[WordErrors(3, 0, 0, 0)] * 4, *[WordErrors(5, 0, 0, 0)] * 181]
    base = [*[WordErrors(8, 0, 0, 0)] * 15, *[WordErrors(2, 1, 0, 0)] * 4, *[WordErrors(5, 0, 0, 0)] * 181]
    difference = compare_wer(ours, base, 20_000, 1)
    assert difference.p_value == pytest.approx(2 * binom.sf(14, 19, 0.5), abs=0.003)
    assert difference.points == paired_bootstrap_wer_points(ours, base, 20_000, 1)
    assert difference.points.value == pytest.approx(100 * 11 / 1037)
    assert difference.points.low > 0 and difference.p_value < 0.05
    of_rates = sign_flip_p_value([a.wer - b.wer for a, b in zip(ours, base, strict=True)], 20_000, 1)
    assert of_rates > 0.15, "so the two statistics do disagree here"


def test_interval_excludes_zero_when_p_is_below_five_percent():
    """Two ways to ask one question: they answer alike but for the cases at the edge."""
    trials, alike, clear_cases, clear_alike = 400, 0, 0, 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        words, worse = rng.integers(3, 12, size=150), rng.uniform(0, 0.04)
        pair = [rng.binomial(words, rate) for rate in (0.06 + worse, 0.06)]
        ours, base = (
            [WordErrors(int(w - e), int(e), 0, 0) for w, e in zip(words, errors, strict=True)] for errors in pair
        )
        points, p_value = compare_wer(ours, base, 1000, trial)
        agrees = (points.low > 0 or points.high < 0) == (p_value < 0.05)
        alike += agrees
        if not 0.03 < p_value < 0.08:
            clear_cases, clear_alike = clear_cases + 1, clear_alike + agrees
    assert alike / trials >= 0.95  # 387 of 400
    assert clear_alike == clear_cases > 300


def test_interval_and_sign_flips_of_a_mean_agree_too():
    alike = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        differences = rng.normal(rng.uniform(0, 0.4), 1.0, size=100)
        interval = paired_bootstrap_mean(differences, np.zeros(100), 1000, trial)
        alike += (interval.low > 0 or interval.high < 0) == (sign_flip_p_value(differences, 1000, trial) < 0.05)
    assert alike / 200 >= 0.96


def test_same_seed_same_numbers():
    rng = np.random.default_rng(4)
    system, baseline = spoken(rng, 80, 0.2), spoken(rng, 80, 0.2)
    values = rng.normal(size=80)
    for measure in (
        lambda seed: bootstrap_mean(values, 200, seed),
        lambda seed: bootstrap_corpus_wer(system, 200, seed),
        lambda seed: paired_bootstrap_wer_points(system, system[:40] + system[40:], 200, seed),
        lambda seed: paired_bootstrap_mean(values, -values, 200, seed),
        lambda seed: sign_flip_p_value(values, 200, seed),
    ):
        assert measure(1) == measure(1)
    assert bootstrap_corpus_wer(baseline, 200, 1) != bootstrap_corpus_wer(baseline, 200, 2)


def test_blocks_bound_memory_and_count_every_resample(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, 2001, 1)
    p_value = sign_flip_p_value(values + 0.3, 2001, 1)
    monkeypatch.setattr(statistics, "BLOCK_NUMBERS", 50 * 7)
    assert sum(statistics._blocks(2001, 50)) == 2001
    assert bootstrap_mean(values, 2001, 1).low == pytest.approx(whole.low, abs=0.03)
    assert sign_flip_p_value(values + 0.3, 2001, 1) == pytest.approx(p_value, abs=0.03)


def test_unequal_lengths_are_refused():
    one = [WordErrors(1, 0, 0, 0)]
    with pytest.raises(InvalidInputError, match="2 utterances against 1"):
        paired_bootstrap_wer_points(one * 2, one, 10, 1)
    with pytest.raises(InvalidInputError, match="2 utterances against 1"):
        compare_wer(one * 2, one, 10, 1)
    with pytest.raises(InvalidInputError, match="2 utterances against 1"):
        paired_bootstrap_mean([1.0, 2.0], [1.0], 10, 1)


def test_other_texts_are_refused():
    with pytest.raises(InvalidInputError, match="utterance 1: observed 3 reference words against 2"):
        paired_bootstrap_wer_points(
            [WordErrors(1, 0, 0, 0), WordErrors(2, 1, 0, 0)], [WordErrors(1, 0, 0, 0), WordErrors(2, 0, 0, 1)], 10, 1
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad):
    with pytest.raises(InvalidInputError, match=r"values\[1\]"):
        bootstrap_mean([0.0, bad], 10, 1)
    with pytest.raises(InvalidInputError, match=r"baseline values\[0\]"):
        paired_bootstrap_mean([0.0], [bad], 10, 1)
    with pytest.raises(InvalidInputError, match=r"differences\[0\]"):
        sign_flip_p_value([bad], 10, 1)


def test_texts_without_any_word_have_no_word_error_rate():
    wordless = [WordErrors(0, 0, 0, 2), WordErrors(0, 0, 0, 0)]
    for measure in (lambda: bootstrap_corpus_wer(wordless, 10, 1), lambda: compare_wer(wordless, wordless, 10, 1)):
        with pytest.raises(InvalidInputError, match="observed no reference word in 2 utterances"):
            measure()
    assert bootstrap_corpus_wer([*wordless, WordErrors(4, 0, 0, 0)], 10, 1).value == 0.5


def test_nothing_is_refused():
    for measure in (bootstrap_mean, bootstrap_corpus_wer, sign_flip_p_value):
        with pytest.raises(InvalidInputError, match="at least 1"):
            measure([], 10, 1)
