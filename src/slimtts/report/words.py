"""Which words were said as written: one minimal alignment of a sentence with what was heard."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jiwer

from slimtts.evaluation.normalization import Normalizer, normalize
from slimtts.evaluation.word_errors import Metric

Mark = Literal["hit", "substitution", "deletion", "insertion"]
MARKS: dict[str, Mark] = {
    "equal": "hit", "substitute": "substitution", "delete": "deletion", "insert": "insertion",
}  # fmt: skip


class MarkedWord(NamedTuple):
    """A word that should be said, a word that was heard, or both; "" for none."""

    mark: Mark
    expected: str
    heard: str


def mark_words(reference: str, hypothesis: str, normalizer: Normalizer, metric: Metric = "WER") -> list[MarkedWord]:
    """Both texts, normalised, word by word (CER: character by character); errors as `count_word_errors` counts them."""
    expected, heard = (normalize(text, normalizer).split() for text in (reference, hypothesis))
    if metric == "CER":
        expected, heard = (list("".join(words)) for words in (expected, heard))
    if not expected or not heard:
        missing = [MarkedWord("deletion", word, "") for word in expected]
        return missing + [MarkedWord("insertion", "", word) for word in heard]
    marked = []
    for part in jiwer.process_words(" ".join(expected), " ".join(heard)).alignments[0]:
        left, right = expected[part.ref_start_idx : part.ref_end_idx], heard[part.hyp_start_idx : part.hyp_end_idx]
        length = max(len(left), len(right))
        left, right = (words + [""] * (length - len(words)) for words in (left, right))
        marked += [MarkedWord(MARKS[part.type], *pair) for pair in zip(left, right, strict=True)]
    return marked


def word_error_rate(words: list[MarkedWord]) -> float:
    """Of one sentence, as `WordErrors.wer`."""
    return sum(word.mark != "hit" for word in words) / max(1, sum(word.mark != "insertion" for word in words))
