"""The parts of the bundled teacher's recipe."""

import random

import numpy as np
import pytest
import torch

from slimtts.codec.nano_codec import FiniteScalarQuantizer, NanoCodec, NanoCodecConfig
from slimtts.nano.corpus_encoding import frame_phones, frame_words
from slimtts.nano.grammar import TEMPLATES, WORDS, sample_sentence, split_of, unknown_words, vocabulary
from slimtts.nano.speech_synthesis import SpokenUtterance

TINY = NanoCodecConfig(
    encoder_channels=16,
    decoder_channels=16,
    spectrum_channels=16,
    encoder_blocks=1,
    decoder_blocks=1,
    spectrum_blocks=1,
)


def test_the_language_is_large_enough_and_its_sentences_are_short():
    rng = random.Random(0)
    sentences = [sample_sentence(rng) for _ in range(3000)]
    assert len(vocabulary()) >= 150
    assert {word for s in sentences for word in s.split()} == set(vocabulary())
    assert {len(s.split()) for s in sentences} <= set(range(3, 9))


def test_no_content_word_occurs_twice_in_a_sentence():
    content = set().union(*WORDS.values())
    rng = random.Random(1)
    for _ in range(2000):
        words = [w for w in sample_sentence(rng).split() if w in content]
        assert len(words) == len(set(words))


def test_words_belong_to_one_slot_only():
    literal = {w for t in TEMPLATES for w in t.split() if not w.startswith("{")}
    every = [*literal, *(w for group in WORDS.values() for w in group)]
    assert len(every) == len(set(every))


def test_a_text_always_has_the_same_split_and_splits_have_their_sizes():
    rng = random.Random(2)
    texts = {sample_sentence(rng) for _ in range(8000)}
    splits = [split_of(t) for t in texts]
    assert splits == [split_of(t) for t in texts]
    assert splits.count("test") / len(splits) == pytest.approx(0.05, abs=0.01)
    assert splits.count("selection") / len(splits) == pytest.approx(0.03, abs=0.01)


def test_strange_words_are_named():
    assert unknown_words("The green xylophone, tiger!") == ["xylophone,"]


def test_quantiser_codes_and_values_are_inverse():
    quantizer = FiniteScalarQuantizer((4, 4, 4))
    codes = torch.arange(64)[None]
    values = quantizer.from_codes(codes)
    assert torch.equal(quantizer.to_codes(values), codes)
    assert values.abs().max() == 1


def test_quantiser_passes_gradients_straight_through():
    latent = torch.tensor([[[0.3, -2.0]]], requires_grad=True)
    FiniteScalarQuantizer((4, 4))(latent).sum().backward()
    assert (latent.grad != 0).all()


def test_codec_lengths_and_saving(tmp_path):
    torch.manual_seed(0)
    codec = NanoCodec(TINY).eval()
    wave = torch.randn(2, 640 * 9 + 1) * 0.1
    codes = codec.encode(wave)
    assert codes.shape == (2, 10)
    assert codec.decode(codes).shape == (2, 6400)
    codec.save(tmp_path / "codec")
    again = NanoCodec.load(tmp_path / "codec")
    # Weights are stored in half precision.
    torch.testing.assert_close(again.decode(codes), codec.decode(codes), atol=5e-3, rtol=5e-2)


def test_whisper_features_equal_those_of_faster_whisper():
    from faster_whisper.feature_extractor import FeatureExtractor

    from slimtts.nano.asr_training import NUM_MELS, WINDOW_S, WhisperFeatures

    wave = torch.randn(1, WINDOW_S * 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    reference = FeatureExtractor(feature_size=NUM_MELS, chunk_length=WINDOW_S)(wave[0].numpy(), padding=0)
    np.testing.assert_allclose(WhisperFeatures()(wave)[0].numpy(), reference[:, : WINDOW_S * 100], atol=1e-4)


def test_frame_labels_follow_the_printed_times():
    utterance = SpokenUtterance(
        "u", "a b", "slt", "train", 3 * 640, [("pau", 0.04), ("x", 0.06), ("y", 0.10), ("pau", 0.12)], [0.06, 0.10]
    )
    symbols = {"pau": 0, "x": 1, "y": 2}
    assert frame_phones(utterance, symbols, 3, 0.04).tolist() == [[0, 0], [1, 2], [2, 0]]
    assert frame_words(utterance, 3, 0.04).tolist() == [0, 0, 1]
