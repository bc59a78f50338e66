"""How sure a number is: bootstrap 95 % intervals over utterances and a paired sign-flip test.

Percentile intervals (Efron & Tibshirani 1993, chapter 13); WER as in Bisani & Ney 2004 (ICASSP): whole utterances are
resampled, and for a difference the same ones on both sides. An interval and the p-value beside it are always of one
statistic: corpus WER weighs a sentence by its words, a mean of sentences' rates does not, and the two may disagree.
Legend: N utterances, S resamples, C columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_errors import WordErrors
from slimtts.results import Interval

Numbers = Sequence[float] | np.ndarray

COVERED_PERCENT = (2.5, 97.5)
# Bounds the memory of one block of resamples to 32 MB; the block size also decides the order of the random numbers.
BLOCK_NUMBERS = 4_000_000


class WerDifference(NamedTuple):
    """Difference of two corpus WERs in points, and its p-value."""

    points: Interval
    p_value: float


def bootstrap_mean(values: Numbers, samples: int, seed: int) -> Interval:
    """Mean of the values.

    Raises:
        InvalidInputError: no values, or one that is not finite.
    """
    column = _finite("values", values)
    return _interval(float(column.mean()), _resampled_sums(column[:, None], samples, seed)[:, 0] / len(column))


def bootstrap_corpus_wer(errors: Sequence[WordErrors], samples: int, seed: int) -> Interval:
    """Corpus WER as a fraction.

    Raises:
        InvalidInputError: no utterances.
    """
    counts = _counts(errors)
    return _interval(float(_rate(counts.sum(0))), _rate(_resampled_sums(counts, samples, seed)))


def compare_wer(system: Sequence[WordErrors], baseline: Sequence[WordErrors], samples: int, seed: int) -> WerDifference:
    """Corpus WER of `system` minus that of `baseline`; item i of both is the same text.

    The interval is `paired_bootstrap_wer_points`. The p-value flips the signs of the differences in error counts: as
    both systems have the same reference words, their sum is the difference in corpus WER but for a constant.

    Raises:
        InvalidInputError: none, unequal counts, or a text whose length differs between the two.
    """
    counts = _paired_counts(system, baseline)
    points = paired_bootstrap_wer_points(system, baseline, samples, seed)
    return WerDifference(points, sign_flip_p_value(counts[:, 0] - counts[:, 2], samples, seed))


def paired_bootstrap_wer_points(
    system: Sequence[WordErrors], baseline: Sequence[WordErrors], samples: int, seed: int
) -> Interval:
    """Corpus WER of `system` minus that of `baseline` in points; item i of both is the same text.

    Raises:
        InvalidInputError: none, unequal counts, or a text whose length differs between the two.
    """
    counts = _paired_counts(system, baseline)
    total, resampled = counts.sum(0), _resampled_sums(counts, samples, seed)
    value = float(100 * (_rate(total[:2]) - _rate(total[2:])))
    return _interval(value, 100 * (_rate(resampled[:, :2]) - _rate(resampled[:, 2:])))


def paired_bootstrap_mean(system_values: Numbers, baseline_values: Numbers, samples: int, seed: int) -> Interval:
    """Mean of the differences, system minus baseline; item i of both is the same utterance.

    Raises:
        InvalidInputError: none, unequal counts, or a value that is not finite.
    """
    _refuse_unequal(len(system_values), len(baseline_values))
    differences = _finite("system values", system_values) - _finite("baseline values", baseline_values)
    return bootstrap_mean(differences, samples, seed)


def sign_flip_p_value(differences: Numbers, samples: int, seed: int) -> float:
    """Two-sided p-value of the mean difference when each sign is a coin toss; at least 1 / (samples + 1), never 0.

    Monte-Carlo permutation test; the observed signs count as one of the draws (Phipson & Smyth 2010).

    Raises:
        InvalidInputError: no differences, or one that is not finite.
    """
    column = _finite("differences", differences)
    rng = np.random.default_rng(seed)
    # Sums of the same magnitudes in another order may differ in the last digits and still be ties.
    threshold = abs(column.sum()) - 1e-9 * np.abs(column).sum()
    as_extreme = 0
    for rows in _blocks(samples, len(column)):
        signs = 2.0 * rng.integers(0, 2, size=(rows, len(column))) - 1.0
        as_extreme += int((np.abs(signs @ column) >= threshold).sum())
    return (1 + as_extreme) / (1 + samples)


def _resampled_sums(columns: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums over N rows drawn with replacement: [N, C] -> [S, C]."""
    rng = np.random.default_rng(seed)
    count = len(columns)
    blocks = []
    for rows in _blocks(samples, count):
        drawn = rng.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        blocks.append(times @ columns)
    return np.concatenate(blocks)


def _blocks(samples: int, width: int) -> Iterator[int]:
    """Sizes of consecutive blocks of resamples that together are `samples`."""
    rows = max(1, BLOCK_NUMBERS // width)
    for start in range(0, samples, rows):
        yield min(rows, samples - start)


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.percentile(resampled, COVERED_PERCENT)
    return Interval(value=value, low=float(low), high=float(high))


def _counts(errors: Sequence[WordErrors]) -> np.ndarray:
    """[N, 2]: errors and reference words."""
    if not errors:
        raise InvalidInputError("word errors", "0 utterances", "at least 1", "pass the utterances that were spoken")
    counts = np.array([(e.errors, e.reference_words) for e in errors], dtype=np.float64)
    if not counts[:, 1].any():
        raise InvalidInputError(
            "word errors", f"no reference word in {len(errors)} utterances", "at least 1",
            "check texts, language and normaliser",
        )  # fmt: skip
    return counts


def _paired_counts(system: Sequence[WordErrors], baseline: Sequence[WordErrors]) -> np.ndarray:
    """[N, 4]: errors and reference words of the system, then of the baseline."""
    _refuse_unequal(len(system), len(baseline))
    counts = np.concatenate([_counts(system), _counts(baseline)], axis=1)
    strangers = np.flatnonzero(counts[:, 1] != counts[:, 3])
    if len(strangers):
        first = int(strangers[0])
        raise InvalidInputError(
            f"utterance {first}", f"{counts[first, 1]:.0f} reference words against {counts[first, 3]:.0f}",
            "the same text in both systems", "put both lists in the same order",
        )  # fmt: skip
    return counts


def _rate(counts: np.ndarray) -> np.ndarray:
    """WER of [..., 2] errors and reference words, with the rule of word_errors for empty references."""
    return counts[..., 0] / np.maximum(1, counts[..., 1])


def _finite(what: str, values: Numbers) -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    if column.size == 0:
        raise InvalidInputError(what, "none", "at least 1", "pass one number an utterance")
    wrong = np.flatnonzero(~np.isfinite(column))
    if len(wrong):
        raise InvalidInputError(
            f"{what}[{wrong[0]}]", column[wrong[0]], "finite numbers", "give failed utterances their lowest score"
        )
    return column


def _refuse_unequal(system: int, baseline: int) -> None:
    if system != baseline:
        raise InvalidInputError(
            "paired comparison", f"{system} utterances against {baseline}", "equal counts",
            "count failed utterances instead of leaving them out",
        )  # fmt: skip
