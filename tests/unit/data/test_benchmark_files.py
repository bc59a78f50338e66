"""Lists as they are published: what is read of them, and every way in which they are refused."""

import json

import numpy as np
import pytest

from slimtts.data.benchmark_files import read_benchmark, rows_sha256
from slimtts.errors import InvalidInputError
from slimtts.testing.benchmark_layouts import LAYOUTS, SpokenSentence

RATE = 16_000
CODES = 16


def noise(seed, seconds=0.5):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def sentences(count=3, with_original=True):
    return [
        SpokenSentence(f"Say {i}, please.", f"Prompt {i}.", noise(i), noise(100 + i) if with_original else None, i % 2)
        for i in range(count)
    ]


def refused(kind, path, one_line):
    with pytest.raises(InvalidInputError) as error:
        read_benchmark(kind, path, CODES)
    return one_line(error.value)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same_sentences(kind, tmp_path):
    given = sentences()
    rows = read_benchmark(kind, LAYOUTS[kind](tmp_path, given, RATE), CODES)
    assert [(row.text, row.prompt_text) for row in rows] == [(s.text, s.prompt_text) for s in given]
    for row, sentence in zip(rows, given, strict=True):
        for recording, wave in ((row.prompt, sentence.prompt), (row.original, sentence.original)):
            heard, rate_hz = recording.read()
            assert rate_hz == RATE and heard.numpy() == pytest.approx(wave, abs=1e-4)
    assert len({row.id for row in rows}) == len(given)


def test_every_layout_holds_the_same_samples(tmp_path):
    """Else a difference between two layouts' numbers would be one of file formats."""
    read = {
        kind: read_benchmark(kind, write(tmp_path / kind, sentences(), RATE), CODES) for kind, write in LAYOUTS.items()
    }
    first, *others = [
        [sound.read()[0] for row in rows for sound in (row.prompt, row.original)] for rows in read.values()
    ]
    for waves in others:
        assert all(one.equal(other) for one, other in zip(first, waves, strict=True))


def test_seed_tts_eval_without_or_with_a_fifth_field(tmp_path):
    path = LAYOUTS["seed-tts-eval"](tmp_path, sentences(with_original=False), RATE)
    assert [row.original for row in read_benchmark("seed-tts-eval", path, CODES)] == [None] * 3
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([f"{first}|prompt-wavs/made_0002_prompt.wav", *others]))
    rows = read_benchmark("seed-tts-eval", path, CODES)
    assert rows[0].original.path.name == "made_0002_prompt.wav" and rows[1].original is None


def test_chinese_is_a_sentence(tmp_path):
    path = LAYOUTS["seed-tts-eval"](tmp_path, sentences(1), RATE)
    path.write_text(
        "10002287-00000094|\u4f60\u597d\u3002|prompt-wavs/made_0000_prompt.wav|\u4e16\u754c\uff0c\u60a8\u597d\r\n"
    )
    (row,) = read_benchmark("seed-tts-eval", path, CODES)
    assert (row.id, row.text, row.voice) == ("10002287-00000094", "\u4e16\u754c\uff0c\u60a8\u597d", "made_0000_prompt")


@pytest.mark.parametrize("inner", ["LibriSpeech/test-clean", "."])
def test_librispeech_is_found_where_people_unpack_it(inner, tmp_path):
    path = LAYOUTS["librispeech-pc"](tmp_path / "a", sentences(1), RATE)
    there = tmp_path / "a" / inner
    there.mkdir(parents=True, exist_ok=True)
    for speaker in (tmp_path / "a" / "test-clean").iterdir():
        speaker.rename(there / speaker.name)
    (tmp_path / "a" / "test-clean").rmdir()
    (row,) = read_benchmark("librispeech-pc", path, CODES)
    assert (row.id, row.voice, row.original.path.name) == ("0-2-0000", "0", "0-2-0000.flac")


def test_a_manifest_may_hold_codes(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [
        {"id": "a", "text": "One.", "prompt_text": "Zero.", "prompt_codes": [1, 2]},
        {"id": "b", "text": "Two.", "prompt_text": "Zero.", "prompt_codes": [3], "codes": [4, 5], "voice": "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_benchmark("manifest", path, CODES)
    assert (first.prompt, first.original, first.voice) == ((1, 2), None, "a")
    assert (second.prompt, second.original, second.voice) == ((3,), (4, 5), "x")


def test_a_set_is_named_by_its_texts_and_sound(tmp_path):
    path = LAYOUTS["seed-tts-eval"](tmp_path, sentences(), RATE)
    before = rows_sha256(read_benchmark("seed-tts-eval", path, CODES))
    assert before == rows_sha256(read_benchmark("seed-tts-eval", path, CODES))
    again = LAYOUTS["seed-tts-eval"](tmp_path / "elsewhere", sentences(), RATE)
    assert rows_sha256(read_benchmark("seed-tts-eval", again, CODES)) == before, "wherever it lies"
    prompt = tmp_path / "prompt-wavs" / "made_0001_prompt.wav"
    sound = prompt.read_bytes()
    prompt.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    changed = rows_sha256(read_benchmark("seed-tts-eval", path, CODES))
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert len({before, changed, rows_sha256(read_benchmark("seed-tts-eval", path, CODES))}) == 3


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_missing_recording_stops_everything_and_is_named(kind, tmp_path, one_line):
    path = LAYOUTS[kind](tmp_path, sentences(), RATE)
    lost = sorted(tmp_path.rglob("*0001*prompt*")) or sorted(tmp_path.rglob("*-1-0001.flac"))
    lost[0].unlink()
    told = refused(kind, path, one_line)
    assert "no such file" in told and "0001" in told


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a|b|c", "3 fields"),
        ("a|b|../c.wav|d", "relative path below"),
        ("a|b|/etc/passwd|d", "relative path below"),
        ("../a|b|p.wav|d", "id '../a'"),
        (f"{'a' * 121}|b|p.wav|d", "at most 120"),
        ("a|b|p.wav|?!", "at least one word"),
        ("a|<|endoftext|>|p.wav|d", "fields"),
        ("a||p.wav|d", "at least one word"),
        ("a|b|p.wav|d|../x.wav", "relative path below"),
    ],
)
def test_bad_lines_of_seed_tts_eval(line, wanted, tmp_path, one_line):
    path = tmp_path / "meta.lst"
    path.write_text(f"\n{line}\n")
    told = refused("seed-tts-eval", path, one_line)
    assert told.startswith("meta.lst line 2") and wanted in told


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("1-2-3\t1.0\tText.", "3 fields"),
        ("1-2-3\t1.0\tText.\t../../x\t2.0\tMore.", "'../../x'"),
        ("1-2-3\t1.0\tText.\t1-2-4\t2.0\t<|x|>", "control token '<|x|>'"),
    ],
)
def test_bad_lines_of_librispeech_pc(line, wanted, tmp_path, one_line):
    path = tmp_path / "list.lst"
    path.write_text(line)
    assert wanted in refused("librispeech-pc", path, one_line)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({}, "a prompt of neither or both"),
        ({"prompt_codes": [1], "prompt_audio": "p.wav"}, "a prompt of neither or both"),
        ({"prompt_codes": [16]}, "code 16"),
        ({"prompt_codes": [1], "codes": [16]}, "code 16"),
        ({"prompt_codes": [1], "codes": [1], "audio": "x.wav"}, "both audio and codes"),
        ({"prompt_audio": "../p.wav"}, "relative path below"),
        ({"prompt_codes": [1], "speaker": "x"}, "unknown key 'speaker'"),
    ],
)
def test_bad_rows_of_a_manifest(row, wanted, tmp_path, one_line):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "One.", "prompt_text": "Zero."} | row))
    told = refused("manifest", path, one_line)
    assert wanted in told and "'a'" in told


def test_no_file_no_rows_and_rows_twice(tmp_path, one_line):
    path = tmp_path / "meta.lst"
    assert "no such file" in refused("seed-tts-eval", path, one_line)
    path.write_bytes(b"\xff\xfe\xfa")
    assert "UTF-8" in refused("seed-tts-eval", path, one_line)
    path.write_text("\n\n")
    assert "no rows" in refused("seed-tts-eval", path, one_line)
    LAYOUTS["seed-tts-eval"](tmp_path, sentences(1), RATE)
    path.write_text(path.read_text() * 2)
    assert "2 rows" in refused("seed-tts-eval", path, one_line)
