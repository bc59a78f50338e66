"""A tiny random Whisper with a 4-second window: its words are nonsense, but they must be the right nonsense."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ctranslate2.converters import TransformersConverter
from faster_whisper.tokenizer import Tokenizer as WhisperTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torchaudio.functional import resample
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from slimtts.errors import InvalidInputError
from slimtts.evaluation.recognition import CONVERT, Recognizer, cut_into_windows
from slimtts.nano.asr_training import SPECIALS, TIMESTAMPS

RATE = 16_000
WINDOW = 4 * RATE
NEW_TOKENS = 29  # half of 4 s worth of Whisper's 448 positions


def byte_tokenizer(*languages):
    """Every byte is text, then Whisper's special tokens: prompts must lie from the start to <|notimestamps|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False, special=True) for t in [*SPECIALS[:2], *languages, *SPECIALS[2:], *TIMESTAMPS]]
    )
    return tokenizer


def random_whisper(tokenizer):
    """Random weights that fp16 holds exactly, large enough that the words depend on the audio."""
    torch.manual_seed(3)
    end, start = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|startoftranscript|>")
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(), num_mel_bins=80, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_source_positions=200, max_target_positions=64, pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=start, suppress_tokens=[], begin_suppress_tokens=[], init_std=0.4,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model


def convert(model, tokenizer, out, tmp):
    model.save_pretrained(tmp)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(tmp)
    TransformersConverter(str(tmp)).convert(str(out), quantization="float16")
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "preprocessor_config.json").write_text(json.dumps({"feature_size": 80, "chunk_length": 4}))


@pytest.fixture(scope="module")
def tiny():
    tokenizer = byte_tokenizer()
    return random_whisper(tokenizer), tokenizer


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("recogniser") / "asr"
    convert(*tiny, out, tmp_path_factory.mktemp("whisper"))
    return out


@pytest.fixture(scope="module")
def recognizer(folder):
    return Recognizer.load(str(folder), beam_size=1, threads=1)


def sound(seed, seconds, rate=RATE):
    """Chirps and noise, different for each seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * (f * t + g * t**2)) for f, g in rng.uniform((80, -50), (2000, 300), (5, 2)))
    return (0.1 * tones + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


@torch.inference_mode()
def greedy_by_transformers(model, tokenizer, prompt, wave):
    """An independent way to the same words: other mel, other encoder, other decoding loop."""
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=4)
    features = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
    ids = [tokenizer.token_to_id(f"<|{token}|>") for token in prompt]
    end = tokenizer.token_to_id("<|endoftext|>")
    words = []
    for _ in range(NEW_TOKENS):
        logits = model(input_features=features, decoder_input_ids=torch.tensor([ids + words])).logits
        words.append(int(logits[0, -1].argmax()))
        if words[-1] == end:
            break
    return tokenizer.decode([w for w in words if w < end]).strip()


@pytest.fixture(scope="module")
def own_whisper(tmp_path_factory):
    """A Whisper of 128 mels and 30 s, as save_pretrained leaves it beside its tokenizer and preprocessor."""
    tokenizer, source = byte_tokenizer(), tmp_path_factory.mktemp("own")
    config = random_whisper(tokenizer).config
    config.num_mel_bins, config.max_source_positions, config.max_target_positions = 128, 1500, 448
    WhisperForConditionalGeneration(config).save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(source)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(source)
    return source


def test_the_advice_converts_a_whisper_of_128_mels_into_one_that_hears(own_whisper, tmp_path):
    words = CONVERT.split(" with ")[1].split()
    words = [{"WHISPER": str(own_whisper), "FOLDER": str(tmp_path / "own")}.get(word, word) for word in words]
    converter = Path(sys.executable).parent / words[0]
    subprocess.run([converter, *words[1:]], check=True, capture_output=True)
    recognizer = Recognizer.load(str(tmp_path / "own"), beam_size=1, threads=1)
    assert len(recognizer._whisper.feature_extractor.mel_filters) == 128
    assert len(recognizer.transcribe([sound(1, 1.0)], RATE)) == 1


def test_without_a_preprocessor_the_weights_say_how_many_mels(own_whisper, tmp_path):
    TransformersConverter(str(own_whisper), copy_files=["tokenizer.json"]).convert(str(tmp_path / "own"))
    recognizer = Recognizer.load(str(tmp_path / "own"), beam_size=1, threads=1)
    assert len(recognizer.transcribe([sound(1, 1.0)], RATE)) == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"feature_size": 80}, "80 mel bins; allowed: 128"),
        ({"feature_size": 128, "chunk_length": 31}, "a window of 31 s"),
    ],
)
def test_features_of_another_model_are_refused_at_load(own_whisper, tmp_path, settings, told):
    TransformersConverter(str(own_whisper), copy_files=["tokenizer.json"]).convert(str(tmp_path / "own"))
    (tmp_path / "own" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidInputError, match=told):
        Recognizer.load(str(tmp_path / "own"), beam_size=1, threads=1)


def test_words_equal_those_of_transformers(tiny, recognizer):
    waves = [sound(seed, 1.0 + 0.5 * seed) for seed in range(6)]
    expected = [greedy_by_transformers(*tiny, ("startoftranscript", "notimestamps"), wave) for wave in waves]
    assert len(set(expected)) >= 4, "the tiny model must listen, or this test proves nothing"
    assert recognizer.transcribe(waves, RATE) == expected


def test_a_multilingual_model_is_told_english_and_transcribe(tmp_path):
    tokenizer = byte_tokenizer("<|en|>", "<|de|>")
    model = random_whisper(tokenizer)
    convert(model, tokenizer, tmp_path / "asr", tmp_path / "source")
    # CTranslate2 calls only models with Whisper's full vocabulary multilingual, so this tiny one is declared to be.
    told = replace(
        Recognizer.load(str(tmp_path / "asr"), beam_size=1, threads=1),
        _tokenizer=WhisperTokenizer(tokenizer, multilingual=True, task="transcribe", language="en"),
    )
    waves = [sound(seed, 2.0) for seed in range(4)]
    prompt = ("startoftranscript", "en", "transcribe", "notimestamps")
    expected = [greedy_by_transformers(model, tokenizer, prompt, wave) for wave in waves]
    without = [greedy_by_transformers(model, tokenizer, ("startoftranscript", "notimestamps"), wave) for wave in waves]
    assert expected != without
    assert told.transcribe(waves, RATE) == expected


def test_other_languages_need_ears_that_know_them(recognizer):
    assert recognizer.in_language("en").transcribe([sound(0, 1.0)], RATE) == recognizer.transcribe(
        [sound(0, 1.0)], RATE
    )
    with pytest.raises(InvalidInputError, match=r"observed zh with asr@\w+ beam 1; allowed: en"):
        recognizer.in_language("zh")
    tokenizer = byte_tokenizer("<|en|>", "<|zh|>")
    many = SimpleNamespace(hf_tokenizer=tokenizer, model=SimpleNamespace(is_multilingual=True))
    told = replace(recognizer, _whisper=many).in_language("zh")
    assert told._tokenizer.sot_sequence[1] == tokenizer.token_to_id("<|zh|>")
    assert told.name == recognizer.name
    with pytest.raises(InvalidInputError, match=r"evaluate_student\.language: observed xx"):
        told.in_language("xx")


def test_a_batch_equals_one_by_one(recognizer):
    waves = [sound(seed, 0.3 + 0.35 * seed) for seed in range(20)]
    together = recognizer.transcribe(waves, RATE)
    assert together == [recognizer.transcribe([wave], RATE)[0] for wave in waves]
    assert len(set(together)) > 10


def test_batches_are_of_similar_length_and_texts_come_back_in_order(recognizer, monkeypatch):
    waves = [sound(seed, 0.5 + (seed * 7 % 10) / 4) for seed in range(10)]
    expected = recognizer.transcribe(waves, RATE)
    monkeypatch.setattr("slimtts.evaluation.recognition.BATCH_WINDOWS", 3)
    heard = []
    plain = Recognizer._transcribe_windows

    def listening(self, pieces):
        heard.append([len(piece) for piece in pieces])
        return plain(self, pieces)

    monkeypatch.setattr(Recognizer, "_transcribe_windows", listening)
    assert recognizer.transcribe(waves, RATE) == expected
    assert list(map(len, heard)) == [3, 3, 3, 1]
    assert [length for batch in heard for length in batch] == sorted(map(len, waves))


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_no_text(folder, recognizer, threads):
    waves = [sound(seed, 0.3 + 0.35 * seed) for seed in range(9)]
    several = Recognizer.load(str(folder), beam_size=1, threads=threads)
    assert several.transcribe(waves, RATE) == recognizer.transcribe(waves, RATE)
    assert several.transcribe(waves[:1], RATE) == recognizer.transcribe(waves[:1], RATE)
    assert several.name == recognizer.name


def test_an_error_in_a_thread_is_heard_of(folder, monkeypatch):
    several = Recognizer.load(str(folder), beam_size=1, threads=2)
    monkeypatch.setattr(Recognizer, "_transcribe_windows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        several.transcribe([sound(1, 1.0), sound(2, 2.0)], RATE)


def test_other_rates_are_resampled(recognizer):
    wave = sound(1, 2.0, rate=24_000)
    at_16_khz = resample(torch.from_numpy(wave), 24_000, RATE).numpy()
    assert recognizer.transcribe([wave], 24_000) == recognizer.transcribe([at_16_khz], RATE)
    assert recognizer.transcribe([wave], 24_000) != recognizer.transcribe([wave], RATE)


def test_long_audio_is_heard_to_its_end(recognizer):
    long = np.concatenate([sound(seed, 3.7) for seed in range(3)])
    pieces = cut_into_windows(long, WINDOW)
    assert len(pieces) >= 3
    texts = recognizer.transcribe(pieces, RATE)
    short = sound(9, 1.0)
    assert recognizer.transcribe([long, short], RATE) == [
        " ".join(t for t in texts if t),
        recognizer.transcribe([short], RATE)[0],
    ]


def test_windows_are_cut_where_it_is_quiet():
    wave = np.ones(2 * WINDOW, dtype=np.float32)
    wave[55_000:56_600] = 0.0
    pieces = cut_into_windows(wave, WINDOW)
    assert 55_000 <= len(pieces[0]) <= 56_600
    assert all(len(piece) <= WINDOW for piece in pieces)
    assert np.array_equal(np.concatenate(pieces), wave)
    assert [len(p) for p in cut_into_windows(wave[:WINDOW], WINDOW)] == [WINDOW]


def test_silence_says_nothing(recognizer):
    silent = [np.zeros(0, np.float32), np.zeros(RATE, np.float32), np.zeros(3 * WINDOW, np.float32)]
    assert recognizer.transcribe(silent, RATE) == ["", "", ""]
    assert recognizer.transcribe([], RATE) == []
    spoken = sound(2, 1.0)
    assert recognizer.transcribe([silent[0], spoken], 24_000)[1] == recognizer.transcribe([spoken], 24_000)[0]


def test_one_sample_is_enough(recognizer):
    assert isinstance(recognizer.transcribe([np.ones(1, np.float32)], RATE)[0], str)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_audio_is_named(recognizer, bad):
    wave = sound(0, 0.5)
    wave[7] = bad
    with pytest.raises(InvalidInputError, match="waveform 1: observed NaN or infinity"):
        recognizer.transcribe([sound(0, 0.5), wave], RATE)


@pytest.mark.parametrize("wave", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16)])
def test_stereo_and_integers_are_refused(recognizer, wave):
    with pytest.raises(InvalidInputError, match="waveform 0"):
        recognizer.transcribe([wave], RATE)


def test_beam_search_runs_and_is_named(folder, recognizer):
    wide = Recognizer.load(str(folder), beam_size=4, threads=1)
    assert wide.name.startswith("asr@") and wide.name.endswith(" beam 4")
    assert recognizer.name == wide.name.replace("beam 4", "beam 1")
    waves = [sound(seed, 2.0) for seed in range(3)]
    assert wide.transcribe(waves, RATE) == [wide.transcribe([wave], RATE)[0] for wave in waves]
    assert wide.transcribe(waves, RATE) != recognizer.transcribe(waves, RATE)


def test_a_folder_without_its_tokenizer_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(InvalidInputError, match=r"tokenizer\.json missing"):
        Recognizer.load(str(tmp_path), beam_size=1)


def test_a_size_comes_from_the_cache_or_not_at_all(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"Whisper tiny\.en is not in the local cache"):
        Recognizer.load("tiny.en", beam_size=1)
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--Systran--faster-whisper-tiny.en"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir(exist_ok=True)
    (repository / "snapshots" / revision).symlink_to(folder)
    assert Recognizer.load("tiny.en", beam_size=2, threads=1).name == "whisper-tiny.en@0123456789ab beam 2"


def test_an_unknown_model_is_refused():
    with pytest.raises(
        InvalidInputError, match=r"observed no/such/folder; allowed: an existing folder, or one of tiny"
    ):
        Recognizer.load("no/such/folder", beam_size=1)


def test_the_window_is_the_models_own(recognizer):
    # What lies behind the 4 seconds of this model's window is heard too.
    assert recognizer.transcribe([sound(4, 5.5)], RATE) != recognizer.transcribe([sound(4, 5.5)[:WINDOW]], RATE)
