"""Shape, range and the rule for audio without a voice; the encoder's quality is its authors' claim."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from slimtts.errors import InvalidInputError
from slimtts.evaluation.similarity import SpeakerSimilarity, WavLmSimilarity
from slimtts.teachers.checkpoint import hash_weights

RATE = 16_000


def voice(pitch_hz, duration_s, rate_hz=RATE):
    """A buzz with two vowel resonances and a slow tremble: enough for a voice detector."""
    t = np.arange(int(duration_s * rate_hz)) / rate_hz
    tones = pitch_hz * np.arange(1, int(7_000 / pitch_hz))
    loudness = np.exp(-(((tones - 700) / 400) ** 2)) + 0.5 * np.exp(-(((tones - 1800) / 500) ** 2))
    buzz = loudness @ np.sin(2 * np.pi * tones[:, None] * t)
    tremble = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)
    return (0.2 * tremble * buzz / np.abs(buzz).max()).astype(np.float32)


@pytest.fixture(scope="module")
def similarity():
    return SpeakerSimilarity()


def test_rows_are_unit_vectors_and_alike_voices_are_closer(similarity):
    low, near, high = embedded = similarity.embed([voice(110, 2.0), voice(115, 1.5), voice(220, 2.0)], RATE)
    assert embedded.shape == (3, 256) and embedded.dtype == np.float32
    assert np.linalg.norm(embedded, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    to_near, to_high = similarity.cosine(np.stack([low, low]), np.stack([near, high]))
    assert -1 <= to_high < to_near <= 1


def test_same_audio_same_row_whatever_is_beside_it(similarity):
    wave = voice(150, 1.2)
    row = similarity.embed([wave], RATE)[0]
    assert np.array_equal(similarity.embed([voice(200, 3.0), wave], RATE)[1], row)
    assert similarity.cosine(row[None], row[None]) == pytest.approx([1.0], abs=1e-5)


def test_the_rate_hardly_matters(similarity):
    at_24_khz = similarity.embed([voice(150, 2.0, 24_000)], 24_000)
    assert similarity.cosine(similarity.embed([voice(150, 2.0)], RATE), at_24_khz)[0] > 0.99


def test_audio_beyond_full_scale_is_scaled_not_wrapped(similarity):
    wave = voice(150, 2.0)
    beyond, full = similarity.embed([10 * wave, wave / np.abs(wave).max()], RATE)
    assert beyond == pytest.approx(full, abs=1e-4)


def test_audio_without_a_voice_resembles_nobody(similarity):
    embedded = similarity.embed(
        [np.zeros(0, np.float32), np.zeros(RATE, np.float32), voice(150, 0.29), voice(150, 1.0)], RATE
    )
    assert not embedded[:3].any()
    assert similarity.cosine(embedded, np.repeat(embedded[3:], 4, axis=0))[:3].tolist() == [0.0, 0.0, 0.0]
    assert embedded[3].any()


def test_no_utterances_give_no_rows(similarity):
    assert similarity.embed([], RATE).shape == (0, 256)


def test_mistakes_are_named(similarity):
    with pytest.raises(InvalidInputError, match="waveform 1: observed NaN or infinity"):
        similarity.embed([voice(150, 0.5), np.array([np.nan], np.float32)], RATE)
    with pytest.raises(InvalidInputError, match=r"\[2, 256\] against \[1, 256\]"):
        similarity.cosine(np.zeros((2, 256)), np.zeros((1, 256)))


def test_loading_is_quiet_and_the_name_tells_the_encoder(capsys):
    assert SpeakerSimilarity().name.startswith("resemblyzer 0.")
    assert capsys.readouterr() == ("", "")


def test_the_weights_are_tensors_only(monkeypatch):
    def strict(path, **options):
        return load(path, **{**options, "weights_only": True})

    load = torch.load
    monkeypatch.setattr(torch, "load", strict)
    wave = [voice(150, 1.0)]
    assert np.array_equal(SpeakerSimilarity().embed(wave, RATE), SpeakerSimilarity().embed(wave, RATE))


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    """A WavLM of two small layers with random weights: what it hears is nonsense, but always the same."""
    torch.manual_seed(5)
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3,
        conv_dim=(16, 16, 16, 16, 16, 16, 16), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16, 16, 16, 24), xvector_output_dim=20,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wavlm") / "verifier"
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_a_wavlm_of_a_folder_is_named_by_its_weights(wavlm_folder):
    wavlm = WavLmSimilarity.load(str(wavlm_folder))
    assert wavlm.name == f"verifier x-vector@{hash_weights(wavlm_folder)[:12]}"
    waves = [voice(110, 2.0), voice(220, 0.7), voice(150, 0.4), np.zeros(RATE, np.float32)]
    rows = wavlm.embed(waves, RATE)
    assert rows.shape == (4, 20) and not rows[2:].any()
    assert np.linalg.norm(rows[:2], axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert np.array_equal(wavlm.embed(waves[1:2], RATE)[0], rows[1]), "whatever is beside it"


def test_a_wavlm_embeds_as_transformers_does(wavlm_folder):
    model = WavLMForXVector.from_pretrained(wavlm_folder).eval()
    wave = voice(130, 1.0)
    scaled = torch.from_numpy((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7))
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model(scaled[None]).embeddings[0], dim=0).numpy()
    assert WavLmSimilarity.load(str(wavlm_folder)).embed([wave], RATE)[0] == pytest.approx(expected, abs=1e-5)


def test_a_wavlm_without_its_head_or_its_safetensors_is_refused(wavlm_folder, tmp_path):
    WavLMForXVector.from_pretrained(wavlm_folder).wavlm.save_pretrained(tmp_path / "body")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "body")
    with pytest.raises(InvalidInputError, match="tensors missing"):
        WavLmSimilarity.load(str(tmp_path / "body"))
    (tmp_path / "pickled").mkdir()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match=r"no \*\.safetensors file"):
        WavLmSimilarity.load(str(tmp_path / "pickled"))


def test_a_wavlm_of_the_hub_needs_its_commit():
    with pytest.raises(InvalidInputError, match=r"evaluate_student\.similarity.*40 hex digits"):
        WavLmSimilarity.load("microsoft/wavlm-base-plus-sv")
