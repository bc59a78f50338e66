import itertools

import numpy as np
import pytest
from PIL import Image

from slimtts.distill.healing import PRESETS
from slimtts.distill.losses import dynamic_matches
from slimtts.params import DistillStudentParams, LossParams, load_params
from slimtts.report.layer_figure import describe_layers, imitated_layers, layer_figure
from slimtts.report.sound_pictures import OUTLINE_COLUMNS, SHADES, outline, spectrogram, write_spectrogram
from slimtts.results import PrunePlan
from slimtts.testing.finished_run import RATE_HZ
from tasks.workspace import CHECKOUT

PLAN = PrunePlan(
    num_layers=8, retained=[0, 3, 4, 7], dropped=[1, 2, 5, 6], teacher_parameters=8, student_parameters=4,
    teacher_sha256="",
)  # fmt: skip


def tone(frequency_hz, level=0.5, seconds=0.5):
    return level * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def test_a_tone_is_brightest_at_its_frequency_and_time_runs_to_the_right():
    silent_then_tone = np.concatenate([np.zeros(RATE_HZ // 2), tone(2000)])
    picture = spectrogram(silent_then_tone, RATE_HZ)
    rows, columns = picture.shape
    right = picture[:, 3 * columns // 4]
    assert abs((rows - right.argmax()) / rows * RATE_HZ / 2 - 2000) < 70
    assert picture[:, columns // 4].max() == 0
    assert picture.max() <= SHADES - 1


def test_levels_are_absolute_so_that_systems_can_be_compared():
    assert spectrogram(tone(1000, 0.01), RATE_HZ).max() < spectrogram(tone(1000, 0.1), RATE_HZ).max()


@pytest.mark.parametrize("samples", [0, 1, 100, OUTLINE_COLUMNS - 1, 5000])
def test_any_length_has_its_pictures(samples, tmp_path):
    wave = np.full(samples, -0.5, dtype=np.float32)
    assert outline(wave) == ([128] * OUTLINE_COLUMNS if samples else [])
    write_spectrogram(tmp_path / "picture.png", wave, RATE_HZ)
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()
        assert picture.height == 128 and picture.width >= 1


def test_the_outline_follows_the_loudest_samples_and_never_exceeds_its_range():
    wave = np.concatenate([np.zeros(8000), 2.0 * np.ones(8000)])
    assert outline(wave)[: OUTLINE_COLUMNS // 2] == [0] * (OUTLINE_COLUMNS // 2)
    assert set(outline(wave)[OUTLINE_COLUMNS // 2 :]) == {255}


WEIGHTS = (None, 0.0, 0.5)


@pytest.mark.parametrize("preset", ["default", "spade"])
def test_the_figure_shows_what_the_healing_loss_matches(preset):
    knobs = load_params(CHECKOUT / "params.yaml").distill_student
    for latent, attention, matching in itertools.product(WEIGHTS, WEIGHTS, (None, "static", "dynamic")):
        loss = LossParams(latent=latent, attention=attention, matching=matching)
        changed = knobs.model_copy(update={"preset": preset, "loss": loss})
        used = PRESETS[preset].changed(loss)
        matches = dynamic_matches(PLAN.retained, 8) if used.matching == "dynamic" else PLAN.retained
        assert imitated_layers(PLAN, changed) == (matches if used.latent or used.attention else None)
    assert imitated_layers(PLAN, untrained(knobs)) is None


def untrained(knobs: DistillStudentParams) -> DistillStudentParams:
    return knobs.model_copy(update={"steps": 0})


def test_every_layer_is_drawn_once_with_its_fate():
    figure = layer_figure(PLAN, [2, 3, 6, 7])
    for layer in range(8):
        assert figure.count(f"<title>teacher layer {layer}: {'kept' if layer in PLAN.retained else 'dropped'}<") == 1
    assert figure.count('class="copied"') == 4
    assert figure.count('class="learned"') == 2, "not where a layer imitates the one it was copied from"
    assert "4 of 8 layers stay: 0 3 4 7. Dropped: 1 2 5 6." in describe_layers(PLAN, None)
    assert 'class="learned"' not in layer_figure(PLAN, None)
