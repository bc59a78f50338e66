"""Word errors of one utterance, and the rates over many; characters where a language writes no spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np

from slimtts.errors import InvalidInputError
from slimtts.evaluation.normalization import Normalizer, normalize

Metric = Literal["WER", "CER"]

# Languages written without spaces between words: Burmese, Chinese, Japanese, Khmer, Lao, Thai, Tibetan, Cantonese.
SPACELESS = frozenset("my zh ja km lo th bo yue".split())


def metric_of(language: str) -> Metric:
    """What is counted in a language (ISO code): characters where words are not written apart."""
    return "CER" if language in SPACELESS else "WER"


@dataclass(frozen=True)
class WordErrors:
    """Counts of one minimal alignment, in words; in characters when the metric is CER."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference_words(self) -> int:
        """Words that should have been said."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Everything that went wrong."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Raw rate; insertions may push it above 1. An empty reference divides by 1: each inserted word costs 1.0."""
        return self.errors / max(1, self.reference_words)

    @property
    def capped_wer(self) -> float:
        """At most 1, so that one utterance of endless speech cannot outweigh the others."""
        return min(1.0, self.wer)


def count_word_errors(reference: str, hypothesis: str, normalizer: Normalizer, metric: Metric = "WER") -> WordErrors:
    """Counts after normalising both texts; nothing heard means that every word was deleted.

    CER: every character but spaces is a word of its own, in any script.
    """
    reference, hypothesis = normalize(reference, normalizer), normalize(hypothesis, normalizer)
    if metric == "CER":
        reference, hypothesis = (" ".join("".join(text.split())) for text in (reference, hypothesis))
    return align_words(reference, hypothesis)


def align_words(reference: str, hypothesis: str) -> WordErrors:
    """Counts between two normalised texts."""
    expected, heard = len(reference.split()), len(hypothesis.split())
    if expected == 0 or heard == 0:
        return WordErrors(hits=0, substitutions=0, deletions=expected, insertions=heard)
    counts = jiwer.process_words(reference, hypothesis)
    return WordErrors(counts.hits, counts.substitutions, counts.deletions, counts.insertions)


def failed(reference: str, normalizer: Normalizer) -> WordErrors:
    """An utterance without audio: all of its words are lost, it is never left out."""
    return count_word_errors(reference, "", normalizer)


def corpus_wer(utterances: Sequence[WordErrors]) -> float:
    """All errors over all reference words; long utterances weigh more.

    Raises:
        InvalidInputError: no utterances.
    """
    _refuse_none(utterances)
    return sum(u.errors for u in utterances) / max(1, sum(u.reference_words for u in utterances))


def mean_wer(utterances: Sequence[WordErrors], capped: bool = False) -> float:
    """Mean of the utterances' rates, each at most 1 when `capped`; every utterance weighs the same.

    Raises:
        InvalidInputError: no utterances.
    """
    _refuse_none(utterances)
    return float(np.mean([u.capped_wer if capped else u.wer for u in utterances]))


def _refuse_none(utterances: Sequence[WordErrors]) -> None:
    if not utterances:
        raise InvalidInputError("word error rate", "0 utterances", "at least 1", "pass the utterances that were spoken")
