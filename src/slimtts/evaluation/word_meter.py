"""From audio to word errors, the same way in every stage: recogniser, language, normaliser, unit and markup.

Whoever hears or counts words asks here, so that none of these settings is obeyed by one stage and forgotten by another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slimtts.data.markup import without_marks
from slimtts.evaluation.normalization import Normalizer, normalizer_for, simplified
from slimtts.evaluation.recognition import Recognizer, recognizer_name
from slimtts.evaluation.word_errors import Metric, WordErrors, count_word_errors, metric_of
from slimtts.params import Params, RecogniserParams
from slimtts.teachers.nano import bundle_folder


def open_recognizer(params: RecogniserParams) -> Recognizer:
    """The recogniser named in params; "bundled" is the one that comes with the nano teacher."""
    return Recognizer.load(_source(params), params.beam_size)


def name_of_recognizer(params: RecogniserParams) -> str:
    """The name that evaluations by it carry, from its files alone."""
    return recognizer_name(_source(params), params.beam_size)


def _source(params: RecogniserParams) -> str:
    return str(bundle_folder() / "asr") if params.model == "bundled" else params.model


@dataclass(frozen=True)
class WordCounter:
    """How transcripts of a family's speech in `language` (ISO code) are counted."""

    language: str
    normalizer: Normalizer
    family: str

    @classmethod
    def of(cls, params: Params) -> WordCounter:
        """For the language that the params' teacher speaks."""
        language = params.teacher.language
        return cls(language, normalizer_for(language, params.recogniser.normalizer), params.teacher.family)

    @property
    def metric(self) -> Metric:
        """What is counted."""
        return metric_of(self.language)

    def count(self, reference: str, transcript: str) -> WordErrors:
        """Word errors, or character errors; the family's marks are no words on either side."""
        return count_word_errors(
            self.without_marks(reference), self.without_marks(transcript), self.normalizer, self.metric
        )

    def without_marks(self, text: str) -> str:
        """The text without the family's marks."""
        return without_marks(text, self.family)


class WordMeter:
    """A recogniser that expects the language that is spoken, and how its transcripts are counted.

    Raises:
        InvalidInputError: the recogniser does not know the language.
    """

    def __init__(self, params: Params, recognizer: Recognizer) -> None:
        self.counter = WordCounter.of(params)
        self.recognizer = recognizer if self.counter.language == "en" else recognizer.in_language(self.counter.language)

    @property
    def name(self) -> str:
        """Of the recogniser: compare only WERs of equal names."""
        return self.recognizer.name

    def transcribe(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> list[str]:
        """One text for each float32 [samples]; Chinese in simplified characters."""
        texts = self.recognizer.transcribe(waveforms, sample_rate_hz)
        return [simplified(text) for text in texts] if self.counter.language == "zh" else texts

    def transcriber(self, sample_rate_hz: int) -> Callable[[Sequence[torch.Tensor]], list[str]]:
        """`transcribe` for waveforms of this rate as a codec gives them."""
        return lambda waveforms: self.transcribe([wave.numpy() for wave in waveforms], sample_rate_hz)

    def count(self, reference: str, transcript: str) -> WordErrors:
        """As the counter does."""
        return self.counter.count(reference, transcript)
