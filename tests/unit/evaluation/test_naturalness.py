"""Range, determinism and the rule for silence; the predictor's quality is its authors' claim."""

import numpy as np
import pytest

from slimtts.errors import InvalidInputError
from slimtts.evaluation.naturalness import LOWEST_MOS, MosPredictor

RATE = 16_000


@pytest.fixture(scope="module")
def predictor():
    return MosPredictor()


def chirp(duration_s, rate_hz=RATE):
    t = np.arange(int(duration_s * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (200 * t + 150 * t**2))).astype(np.float32)


def test_scores_lie_on_the_scale_and_do_not_depend_on_neighbours(predictor):
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    # 9 s is longer than the model's own window of 7.68 s.
    waves = [chirp(1.0), noise, chirp(9.0), np.ones(1, np.float32)]
    scores = predictor.predict(waves, RATE)
    assert len(scores) == 4 and all(isinstance(s, float) and 1.0 < s < 5.0 for s in scores)
    assert predictor.predict(waves[1:2], RATE) == [scores[1]]
    assert scores[0] != scores[1]


def test_silence_is_rated_lowest(predictor):
    empty, zeros = np.zeros(0, np.float32), np.zeros(RATE, np.float32)
    assert predictor.predict([empty, zeros], RATE) == [LOWEST_MOS, LOWEST_MOS] == [1.0, 1.0]
    assert predictor.predict([], RATE) == []


def test_other_rates_are_resampled(predictor):
    at_24_khz, at_16_khz = predictor.predict([chirp(1.0, 24_000)], 24_000), predictor.predict([chirp(1.0)], RATE)
    assert at_24_khz == pytest.approx(at_16_khz, abs=0.3)
    assert predictor.predict([chirp(1.0, 24_000)], RATE) != pytest.approx(at_24_khz, abs=1e-4)


def test_non_finite_audio_is_named(predictor):
    with pytest.raises(InvalidInputError, match="waveform 1: observed NaN or infinity"):
        predictor.predict([chirp(0.5), np.full(100, np.inf, np.float32)], RATE)


def test_loading_is_quiet_and_the_name_tells_the_version(capsys):
    assert MosPredictor().name == "distillmos 0.9.0"
    assert capsys.readouterr() == ("", "")
