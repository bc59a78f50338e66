"""What ships: complete, small, without pickle, within its bars, and it speaks."""

import json

import pytest

from slimtts.data.token_corpus import load_token_corpus
from slimtts.evaluation.recognition import Recognizer
from slimtts.evaluation.word_errors import corpus_wer, count_word_errors
from slimtts.nano.card import held_out_rows
from slimtts.nano.grammar import split_of, vocabulary
from slimtts.speech import Speaker
from slimtts.teachers.nano import bundle_folder

BUNDLE = bundle_folder()
CARD = json.loads((BUNDLE / "card.json").read_text())


@pytest.fixture(scope="module")
def corpus():
    return load_token_corpus(BUNDLE / "corpus")


@pytest.fixture(scope="module")
def speaker():
    return Speaker.load()


def test_size_and_formats():
    files = [f for f in BUNDLE.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40 * 2**20
    assert sum(f.stat().st_size for f in (BUNDLE / "asr").iterdir()) <= 10 * 2**20
    # model.bin is CTranslate2's own format: it holds arrays, nothing that is executed.
    allowed = {".json", ".safetensors", ".jinja", ".npz", ".gz", ".flac", ".md", ".bin"}
    assert {f.suffix for f in files} <= allowed
    assert [f.name for f in files if f.suffix == ".bin"] == ["model.bin"]


def test_measured_numbers_keep_their_bars():
    measured = CARD["measured"]
    assert measured["held_out_sentences"] >= 300
    assert measured["wer_originals"]["value"] <= 0.03
    assert measured["wer_after_codec"]["value"] <= 0.05
    assert measured["wer_teacher"]["value"] <= 0.10
    assert measured["no_end_rate"] <= 0.01
    assert measured["same_voice_similarity"]["low"] > measured["other_voice_similarity"]["high"] + 0.1
    assert measured["parameters"] <= 15e6
    assert measured["codec_parameters"] <= 7e6


def test_every_text_lies_in_the_split_of_its_hash_and_in_the_language(corpus):
    known = set(vocabulary())
    for row in corpus.rows:
        text = row["text"].removesuffix(".")
        assert row["split"] == split_of(text)
        assert known.issuperset(text.split())
    assert {row["voice"] for row in corpus.rows} == {"slt", "rms", "awb"}
    assert len({row["id"] for row in corpus.rows}) == len(corpus.rows)


def test_it_really_speaks_held_out_sentences(corpus, speaker):
    rows = [corpus.rows[i] for i in held_out_rows(corpus, 12)]
    audio = [speaker.speak(row["text"], row["voice"]) for row in rows]
    heard = Recognizer.load(str(BUNDLE / "asr"), beam_size=1, threads=1).transcribe(audio, speaker.sample_rate_hz)
    errors = [count_word_errors(row["text"], text, "basic") for row, text in zip(rows, heard, strict=True)]
    assert corpus_wer(errors) <= 0.15


def test_prompt_audio_gives_the_prompts_codes_back_as_a_voice(corpus, speaker):
    original = speaker.model.audio(corpus.codes_of(0).tolist()).numpy()
    codes = speaker.encode_prompt(original, speaker.sample_rate_hz)
    assert len(codes) == len(corpus.codes_of(0))
    audio = speaker.speak("the green tiger", prompt_text=corpus.rows[0]["text"], prompt_codes=codes)
    assert len(audio) > 0.3 * speaker.sample_rate_hz
