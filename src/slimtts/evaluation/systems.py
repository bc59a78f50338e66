"""One system on the test split: what it said, how it sounded; and two systems compared on the same sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slimtts.evaluation.statistics import (
    bootstrap_corpus_wer,
    bootstrap_mean,
    compare_wer,
    paired_bootstrap_mean,
)
from slimtts.evaluation.word_errors import WordErrors
from slimtts.results import Interval, PairedGap, SpeedResult, SystemResult

MISSING = Interval(value=math.nan, low=math.nan, high=math.nan)


@dataclass(frozen=True)
class SpokenItem:
    """One utterance of one system. `mos` is None where it was not rated.

    `similarity` is the cosine to the prompt's voice, `other_similarity` to the prompt of a sentence in another voice,
    None where there is none.
    """

    id: str
    text: str
    transcript: str
    errors: WordErrors
    ended: bool
    seconds: float
    similarity: float
    mos: float | None
    other_similarity: float | None = None


@dataclass(frozen=True)
class SystemOutput:
    """Everything one system said on the test split, in the order of the split."""

    name: str
    num_layers: int
    parameters: int
    items: list[SpokenItem]
    speed: SpeedResult
    weight_mb: float | None = None


def _rated(items: Sequence[SpokenItem]) -> list[float]:
    return [item.mos for item in items if item.mos is not None]


def other_voices(voices: Sequence[str]) -> list[int | None]:
    """For each sentence the next one, around the end, in another voice; None where all are in one."""
    count = len(voices)
    return [
        next((j % count for j in range(i + 1, i + count) if voices[j % count] != voices[i]), None) for i in range(count)
    ]


def other_voice_similarity(items: Sequence[SpokenItem]) -> float | None:
    """Mean cosine to prompts in other voices; None where there is one voice."""
    cosines = [item.other_similarity for item in items if item.other_similarity is not None]
    return math.fsum(cosines) / len(cosines) if cosines else None


def mean_or_missing(values: Sequence[float], samples: int, seed: int) -> Interval:
    """Of a judge's scores; missing when there are none or one is not finite, for the gate to see."""
    return bootstrap_mean(values, samples, seed) if values and np.isfinite(values).all() else MISSING


def _mean_difference(system: Sequence[float], baseline: Sequence[float], samples: int, seed: int) -> Interval:
    if not system or not np.isfinite([*system, *baseline]).all():
        return MISSING
    return paired_bootstrap_mean(system, baseline, samples, seed)


def summarize(output: SystemOutput, mos_predictor: str, samples: int, seed: int) -> SystemResult:
    """Numbers of one system with bootstrap intervals; an utterance without audio is a failure and a full error."""
    items = output.items
    errors = [item.errors for item in items]
    rated = _rated(items)
    return SystemResult(
        name=output.name,
        num_layers=output.num_layers,
        parameters=output.parameters,
        utterances=len(items),
        wer_corpus=bootstrap_corpus_wer(errors, samples, seed),
        wer_mean=bootstrap_mean([e.wer for e in errors], samples, seed),
        no_end_rate=sum(not item.ended for item in items) / len(items),
        failures=sum(item.seconds == 0 for item in items),
        similarity=mean_or_missing([item.similarity for item in items], samples, seed),
        mos=mean_or_missing(rated, samples, seed),
        mos_predictor=mos_predictor,
        speed=output.speed,
        weight_mb=output.weight_mb,
    )


def compare(system: SystemOutput, baseline: SystemOutput, samples: int, seed: int) -> PairedGap:
    """system minus baseline, utterance by utterance."""
    ours, theirs = [i.errors for i in system.items], [i.errors for i in baseline.items]
    wer = compare_wer(ours, theirs, samples, seed)
    rated = (_rated(system.items), _rated(baseline.items))
    return PairedGap(
        system=system.name,
        baseline=baseline.name,
        wer_points=wer.points,
        p_value=wer.p_value,
        similarity=_mean_difference(
            [i.similarity for i in system.items], [i.similarity for i in baseline.items], samples, seed
        ),
        mos=_mean_difference(*rated, samples, seed),
    )


def as_arrays(waves: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Waveforms as the metrics take them."""
    return [wave.numpy() for wave in waves]
