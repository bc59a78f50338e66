"""Rows of every kind of source hold what their writers meant, or are refused: no type becomes text by chance."""

import datetime
import decimal
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from slimtts import outside_files
from slimtts.data.code_cache import encode_recordings
from slimtts.data.llasa_memmap import TokenRows, llasa_memmap_source
from slimtts.data.manifest import read_audio_manifest, read_split, read_utterances
from slimtts.data.prompts import read_prompts
from slimtts.data.sources import token_corpus_source
from slimtts.errors import InvalidInputError
from tests.unit.data.conftest import noise
from tests.unit.data.test_sources_folder import libritts
from tests.unit.data.test_sources_hf import columns, in_bytes, save_to_disk
from tests.unit.data.test_sources_lhotse import cut

ROW = {"id": "a", "text": "hello there", "voice": "x", "codes": [1, 2, 3]}
DAY = datetime.date(2024, 1, 1)


def as_parquet(folder: Path, types: dict[str, Any] | None = None, **values: Any) -> Path:
    table = {name: pyarrow.array([value], (types or {}).get(name)) for name, value in {**ROW, **values}.items()}
    parquet.write_table(pyarrow.table(table), folder / "rows.parquet")
    return folder / "rows.parquet"


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary(), pyarrow.string(), pyarrow.large_string()])
def test_text_that_a_writer_stored_as_bytes_is_read(tmp_path: Path, open_source, kind: Any) -> None:
    """Spark writes strings as BINARY without a note that they are UTF-8."""
    values = {"text": "grüß dich"} if pyarrow.types.is_string(kind) else {"text": "grüß dich".encode()}
    (row,) = open_source(as_parquet(tmp_path, {"text": kind}, **values)).candidates
    assert row.text == "grüß dich"


@pytest.mark.parametrize("name", ["id", "voice", "split"])
def test_other_fields_in_bytes_are_read_too(tmp_path: Path, open_source, name: str) -> None:
    (row,) = open_source(as_parquet(tmp_path, **{name: b"train"})).candidates
    assert getattr(row, name) == "train"


def test_a_dictionary_of_words_is_text(tmp_path: Path, open_source) -> None:
    table = pyarrow.table({name: [value] for name, value in ROW.items()})
    table = table.set_column(2, "voice", table["voice"].dictionary_encode())
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert open_source(tmp_path / "rows.parquet").candidates[0].voice == "x"


@pytest.mark.parametrize("name", ["id", "text", "voice", "split"])
@pytest.mark.parametrize(
    "value", [7, 7.5, float("nan"), True, DAY, decimal.Decimal("1.5"), ["hello"], {"a": "hello"}, b"\xff\xfe hello"]
)
def test_what_is_no_text_is_refused_by_row_and_field(tmp_path: Path, refusal, name: str, value: Any) -> None:
    message = refusal(as_parquet(tmp_path, **{name: value}))
    assert "rows.parquet row 1" in message and f"{name} = " in message


@pytest.mark.parametrize("value", [[1.0, 2.0], ["1"], [True], [DAY], "1 2 3", 7, b"\x01\x02", [None, 1], []])
def test_what_are_no_codes_is_refused(tmp_path: Path, refusal, value: Any) -> None:
    assert "utterance 'a': observed codes" in refusal(as_parquet(tmp_path, codes=value))


@pytest.mark.parametrize("value", [[1], {"bytes": b"RIFF"}, 7, b"\xff.wav"])
def test_what_is_no_path_is_refused(tmp_path: Path, refusal, value: Any) -> None:
    assert "audio = " in refusal(as_parquet(tmp_path, {"codes": pyarrow.null()}, codes=None, audio=value))


@pytest.mark.parametrize("name", ["id", "text", "speaker"])
@pytest.mark.parametrize("value", [7.5, True, DAY, ["hello"], {"a": "hello"}, b"\xff\xfe"])
def test_what_is_no_text_in_a_dataset_is_refused(tmp_path: Path, refusal, name: str, value: Any) -> None:
    values = columns(in_bytes(tmp_path)) | {name: [value] * 4}
    assert f"{'voice' if name == 'speaker' else name} = " in refusal(save_to_disk(tmp_path / "set", values))


def test_whole_numbers_and_bytes_are_names_in_a_dataset(tmp_path: Path, open_source) -> None:
    values = columns(in_bytes(tmp_path)) | {"text": [b"one", b"two", b"three", b"four"], "id": [0, 1, 2, 3]}
    rows = open_source(save_to_disk(tmp_path / "set", values)).candidates
    assert [(row.id, row.text, row.voice) for row in rows[:2]] == [("0", "one", "19"), ("1", "two", "19")]


def manifest(folder: Path, *lines: str) -> Path:
    (folder / "manifest.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder / "manifest.jsonl"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"id": "a", "text": "one", "text": "two", "voice": "x", "codes": [1]}', "key 'text' twice"),
        ('{"id": "a", "text": "half \\ud83d an emoji", "voice": "x", "codes": [1]}', "hex escape"),
        (json.dumps({**ROW, "id": "語" * 90}), "at most 200 bytes of UTF-8"),
        (json.dumps({**ROW, "voice": "x\u001b[31mred"}), "printable characters"),
        (json.dumps({**ROW, "text": "word " * 3000}), "at most 10000 characters"),
    ],
)
def test_lines_that_would_be_misread_are_refused(tmp_path: Path, refusal, line: str, what: str) -> None:
    message = refusal(manifest(tmp_path, line))
    assert what in message and "manifest.jsonl line 1" in message and len(message) < 500


def test_cuts_with_a_mark_and_a_blank_first_line_are_cuts(tmp_path: Path, open_source) -> None:
    soundfile.write(tmp_path / "0.wav", noise(0.5), 16_000)
    text = "\n \r\n" + json.dumps(cut("0", "0.wav")) + "\n"
    (tmp_path / "cuts.jsonl").write_text(text, encoding="utf-8-sig")
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    for name in ("cuts.jsonl", "cuts.jsonl.gz"):
        assert [row.id for row in open_source(tmp_path / name).candidates] == ["0-0"]


def test_files_that_macos_puts_beside_others_are_no_sentences(tmp_path: Path, open_source, refusal) -> None:
    root = libritts(tmp_path / "tts")
    expected = open_source(root).candidates
    for path in [*root.rglob("*.normalized.txt"), *root.rglob("*.wav")]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    (root / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    assert open_source(root).candidates == expected
    alone = tmp_path / "alone"
    (alone / "1" / "2").mkdir(parents=True)
    (alone / "1" / "2" / "._a.normalized.txt").write_bytes(b"\x00\x05\x16\x07")
    assert "a folder with 1/;" in refusal(alone)


@pytest.mark.parametrize("name", ["manifest.jsonl", "rows.parquet", "cuts.jsonl", "cuts.jsonl.gz"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, refusal, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "no regular file" in refusal(tmp_path / name)


def test_a_name_longer_than_any_is_one_line(tmp_path: Path, refusal) -> None:
    assert "too long" in refusal(tmp_path / ("x" * 300))
    assert "too long" in refusal(tmp_path / ("x" * 300 + ".parquet"))


def test_lines_and_blanks_without_end_are_refused_in_little_memory(tmp_path: Path, refusal) -> None:
    with (tmp_path / "manifest.jsonl").open("wb") as file:
        file.truncate(1 << 40)  # a hole of zeros: no disk is used
    assert "no end of the line" in refusal(tmp_path / "manifest.jsonl")
    (tmp_path / "manifest.jsonl").write_bytes(b"\n" * 20_000)
    assert "blank lines" in refusal(tmp_path / "manifest.jsonl")


def test_a_packed_file_that_grows_without_end_is_refused(tmp_path: Path, refusal) -> None:
    line = json.dumps(cut("0", "0.wav") | {"custom": {"filler": "x" * 1_000_000}}) + "\n"
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(line.encode() * 80, compresslevel=1))
    assert "more than" in refusal(tmp_path / "cuts.jsonl.gz")


def test_a_parquet_file_that_grows_without_end_is_refused(tmp_path: Path, refusal, monkeypatch) -> None:
    monkeypatch.setattr(outside_files, "FREE_BYTES", 1 << 20)
    rows = 20_000
    table = pyarrow.table(
        {"id": [f"u{i}" for i in range(rows)], "text": ["word " * 390] * rows, "voice": ["x"] * rows,
         "codes": [[1]] * rows}
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 200_000
    assert "more than" in refusal(tmp_path / "rows.parquet")


SHAPES = {
    "huge": np.array([2**62, 2**62]),
    "negative": np.array([-4, -16]),
    "no rows": np.array([0, 16]),
    "infinite": np.array([np.inf, 16.0]),
    "complex": np.array([4j, 16]),
    "text": np.array(["4", "16"]),
    "one number": np.array(64),
    "three numbers": np.array([4, 4, 4]),
    "fractions": np.array([4.0, 16.0]),
    "records": np.zeros(2, dtype=[("a", "i4")]),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_of_token_rows_that_are_none_are_refused(tmp_path: Path, one_line, case: str) -> None:
    np.zeros(64, dtype=np.int32).tofile(tmp_path / "train_input_ids.memmap")
    np.save(tmp_path / "train_input_ids_shape.npy", SHAPES[case])
    with pytest.raises(InvalidInputError) as error:
        llasa_memmap_source(tmp_path, TokenRows(lambda ids: "", 0, 1, 0), 50.0)
    assert "train_input_ids" in one_line(error.value)


def test_a_shape_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path, one_line) -> None:
    np.zeros(64, dtype=np.int32).tofile(tmp_path / "train_input_ids.memmap")
    np.save(tmp_path / "train_input_ids_shape.npy", np.array([4, 16]))
    path = tmp_path / "train_input_ids_shape.npy"
    path.write_bytes(path.read_bytes().replace(b"(2,), }         ", b"(9999999999,), }"))
    with pytest.raises(InvalidInputError) as error:
        llasa_memmap_source(tmp_path, TokenRows(lambda ids: "", 0, 1, 0), 50.0)
    assert "shape" in one_line(error.value)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"text": 7}, "text = 7"),
        ({"id": "../up"}, "id = '../up'"),
        ({"voice": None}, "voice = None"),
        ({"split": "dev"}, "split = 'dev'"),
        ({"text": "<|x|>"}, "control token"),
    ],
)
def test_rows_of_a_token_corpus_are_checked(
    token_corpus: Path, facts, one_line, values: dict[str, Any], what: str
) -> None:
    lines = (token_corpus / "manifest.jsonl").read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | values)
    (token_corpus / "manifest.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidInputError) as error:
        token_corpus_source(token_corpus, facts)
    message = one_line(error.value)
    assert "row 5" in message and what in message


@pytest.mark.parametrize("offsets", [[0, 20, 10, 30], [5, 10, 20, 30], [0, 10, 10, 30], [0, 10, 20, 99]])
def test_offsets_that_do_not_part_the_codes_are_refused(tmp_path: Path, facts, one_line, offsets: list[int]) -> None:
    np.savez(tmp_path / "codes.npz", codes=np.zeros(30, np.int16), offsets=np.array(offsets))
    rows = [json.dumps({"id": f"u{i}", "text": "a word", "voice": "x"}) for i in range(3)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows))
    with pytest.raises(InvalidInputError) as error:
        token_corpus_source(tmp_path, facts)
    assert "offsets" in one_line(error.value)


@pytest.mark.parametrize("codes", [np.array(["1"] * 30), np.zeros(30), np.zeros((5, 6), int), np.zeros(30, bool)])
def test_codes_of_another_type_are_refused(tmp_path: Path, facts, one_line, codes: np.ndarray) -> None:
    np.savez(tmp_path / "codes.npz", codes=codes, offsets=np.array([0, 30]))
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "u", "text": "a word", "voice": "x"}))
    with pytest.raises(InvalidInputError) as error:
        token_corpus_source(tmp_path, facts)
    assert "codes of" in one_line(error.value)


def test_a_corpus_that_unpacks_without_end_is_refused(tmp_path: Path, facts, one_line) -> None:
    np.savez_compressed(tmp_path / "codes.npz", codes=np.zeros(60_000_000, np.int16), offsets=np.array([0, 60_000_000]))
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "u", "text": "a word", "voice": "x"}))
    with pytest.raises(InvalidInputError) as error:
        token_corpus_source(tmp_path, facts)
    assert "more than" in one_line(error.value)


def test_an_empty_split_is_one_line(tmp_path: Path, one_line) -> None:
    (tmp_path / "train.jsonl").write_text("\n")
    assert read_utterances(tmp_path / "train.jsonl") == []
    with pytest.raises(InvalidInputError) as error:
        read_split(tmp_path, "train")
    assert "no rows" in one_line(error.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 7}', '{"a": ["b"]}', "null"])
def test_prompts_that_are_none_are_one_line(tmp_path: Path, one_line, text: str) -> None:
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(InvalidInputError) as error:
        read_prompts(tmp_path / "prompts.json", [])
    assert "prompts written by subset_data" in one_line(error.value)


def test_what_no_header_tells_is_dropped_and_counted_by_its_reason(tmp_path: Path, open_source, facts) -> None:
    sounds = {"good": noise(0.5), "silent": np.zeros(8_000), "constant": np.full(8_000, 0.3)}
    sounds["clipped"] = np.sign(noise(0.5))
    sounds["opposite_phase"] = np.stack([noise(0.5), -noise(0.5)], axis=1)
    lines = []
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
        lines.append(json.dumps({"id": name, "text": f"a {name} sentence", "voice": "x", "audio": f"{name}.wav"}))
    source = open_source(manifest(tmp_path, *lines), drop=True)
    assert len(source.candidates) == 5 and not source.dropped  # the headers are all sound
    (tmp_path / "shards").mkdir()
    encoded = encode_recordings(source.recordings, facts, tmp_path / "shards", drop_bad_audio=True)
    assert list(encoded.codes) == ["good"]
    assert encoded.unusable == {name: f"audio_{name}" for name in sounds if name != "good"}
    with pytest.raises(InvalidInputError) as error:
        encode_recordings(source.recordings, facts, tmp_path / "shards", drop_bad_audio=False)
    assert "observed" in str(error.value)


def test_a_manifest_of_audio_reads_the_same_through_every_door(tmp_path: Path) -> None:
    path = manifest(tmp_path, json.dumps(ROW))
    (entry,) = read_audio_manifest(path, 4096)
    assert (entry.id, entry.text, entry.voice, entry.codes) == ("a", "hello there", "x", (1, 2, 3))
