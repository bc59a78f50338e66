import json
from pathlib import Path

import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from tests.unit.data.conftest import everything, noise

ROWS = [
    {
        "id": "a",
        "text": "the golden island",
        "voice": "x",
        "audio": "a.wav",
        "sample_rate_hz": 16_000,
        "split": "train",
    },
    {"id": "b", "text": "a silver river", "voice": "y", "codes": [1, 2, 4095], "split": "test"},
    {"id": "c", "text": "an iron hill", "voice": "x", "audio": "sub/c.flac", "split": "selection"},
]


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    names = sorted({name for row in rows for name in row})
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    parquet.write_table(table, folder / "manifest.parquet")
    return folder / "manifest.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    soundfile.write(tmp_path / "a.wav", noise(0.5), 16_000)
    soundfile.write(tmp_path / "sub" / "c.flac", noise(0.7, 24_000), 24_000)
    return tmp_path


def test_it_equals_the_manifest_in_json_lines(folder: Path, open_source) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    ours, lines = open_source(write(folder, ROWS)), open_source(folder / "manifest.jsonl")
    assert ours.candidates == lines.candidates and len(ours.candidates) == 3
    assert everything(ours) == everything(lines)
    assert set(ours.recordings) == {"a", "c"} and not ours.dropped


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"id": "a", "text": "b", "codes": [1]}], "no column voice among codes, id, text"),
        ([{"id": "a", "text": "b", "voice": "x"}], "no column audio or codes"),
        ([{**ROWS[1], "speaker": "x"}], "unknown column speaker"),
        ([ROWS[0], {**ROWS[1], "text": None}], "row 2, utterance 'b': observed no key 'text'"),
        ([{**ROWS[1], "text": "..."}], "'b', text: observed '...'"),
        ([{**ROWS[1], "codes": [4096]}], "'b': observed code 4096; allowed: 0..4095"),
        ([{**ROWS[1], "codes": [0.5]}], "'b': observed codes.0 = 0.5"),
        ([{**ROWS[0], "codes": [1]}], "'a': observed both audio and codes"),
        ([{**ROWS[0], "audio": "../a.wav"}], "a relative path below"),
        ([{**ROWS[0], "audio": {"bytes": b"RIFF"}}], "'a': observed audio = "),
        ([ROWS[0], ROWS[0]], "row 2, utterance 'a': observed id also in row 1"),
        ([{**ROWS[0], "sample_rate_hz": 8_000}], "16000 Hz in the header"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, refusal, rows: list[dict[str, object]], what: str) -> None:
    assert what in refusal(write(folder, rows))


def test_a_file_that_is_no_parquet_is_one_line(folder: Path, refusal) -> None:
    path = write(folder, ROWS)
    path.write_bytes(path.read_bytes()[:-50])
    assert "manifest.parquet" in refusal(path)
    path.unlink()
    assert "manifest.parquet" in refusal(path)


def test_bad_audio_is_dropped_and_counted_when_that_is_wanted(folder: Path, open_source) -> None:
    (folder / "a.wav").write_bytes(b"no audio")
    soundfile.write(folder / "short.wav", noise(0.1), 16_000)
    more = [{**ROWS[2], "id": f"m{i}", "audio": f"absent-{i}.wav"} for i in range(2)]
    source = open_source(write(folder, [*ROWS, *more, {**ROWS[2], "id": "s", "audio": "short.wav"}]), drop=True)
    assert [row.id for row in source.candidates] == ["b", "c"]
    assert source.dropped == {"audio_unreadable": 1, "audio_missing": 2, "audio_too_short": 1}
