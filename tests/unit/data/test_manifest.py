import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimtts.data.manifest import (
    Utterance,
    audio_path,
    data_sha256,
    read_audio_manifest,
    read_utterances,
    write_utterances,
)
from slimtts.data.spoken_text import text_fault
from slimtts.errors import InvalidInputError

GOOD = {"id": "u1", "text": "the golden island.", "voice": "slt", "codes": [1, 2, 3], "duration_s": 0.12}
AUDIO = {"id": "u1", "text": "the golden island.", "voice": "slt", "audio": "a.wav"}


def changed(**values: object) -> str:
    return json.dumps({**GOOD, **values})


def without(key: str) -> str:
    return json.dumps({k: v for k, v in GOOD.items() if k != key})


BAD_LINES = {
    "invalid JSON": ('{"id": "u1", "text": ', "line 2", "one JSON object"),
    "deep nesting": ("[" * 100_000, "line 2", "one JSON object"),
    "not an object": ("[1, 2]", "line 2", "[1, 2]"),
    "missing key": (without("voice"), "'u1'", "no key 'voice'"),
    "missing id": (without("id"), "line 2", "no key 'id'"),
    "unknown key": (changed(speaker="slt"), "'u1'", "unknown key 'speaker'"),
    "duplicate id": (changed(id="first"), "'first'", "id also in line 1"),
    "empty text": (changed(text="  "), "'u1'", "at least one word"),
    "no word in the text": (changed(text="...!"), "'u1'", "at least one word"),
    "control marker": (
        changed(text="hello <|SPEECH_GENERATION_END|>"),
        "'u1'",
        "control token '<|SPEECH_GENERATION_END|>'",
    ),
    "text of another type": (changed(text=7), "'u1'", "text = 7"),
    "blank voice": (changed(voice=" "), "'u1'", "voice = ' '"),
    "id that is a path": (changed(id="../up"), "'../up'", "id = "),
    "code too large": (changed(codes=[1, 4096]), "'u1'", "code 4096; allowed: 0..4095"),
    "negative code": (changed(codes=[-1]), "'u1'", "codes.0 = -1"),
    "code that is no integer": (changed(codes=[1.5]), "'u1'", "codes.0 = 1.5"),
    "code that is a truth value": (changed(codes=[True]), "'u1'", "codes.0 = True"),
    "empty codes": (changed(codes=[]), "'u1'", "codes = []"),
    "NaN duration": (changed(duration_s=float("nan")), "'u1'", "duration_s = nan"),
    "infinite duration": (changed(duration_s=float("inf")), "'u1'", "duration_s = inf"),
    "no duration": (changed(duration_s=0), "'u1'", "duration_s = 0"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_with_what_is_wrong(tmp_path: Path, one_line, case: str) -> None:
    line, who, what = BAD_LINES[case]
    path = tmp_path / "rows.jsonl"
    path.write_text(changed(id="first") + "\n" + line + "\n")
    with pytest.raises(InvalidInputError) as error:
        read_utterances(path, num_codes=4096)
    message = one_line(error.value)
    assert who in message and what in message and "rows.jsonl line 2" in message
    assert len(message) < 400


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", "folder"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, one_line, content: bytes | str | None) -> None:
    path = tmp_path / "rows.jsonl"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        read_utterances(path)
    assert "rows.jsonl" in one_line(error.value)


def test_codes_are_bounded_only_when_the_codec_is_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(changed(codes=[70_000]))
    assert read_utterances(path)[0].codes == (70_000,)


def test_byte_order_mark_and_blank_lines_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(changed() + "\r\n\r\n", encoding="utf-8-sig")
    assert [row.id for row in read_utterances(path)] == ["u1"]


# Line separators that str.splitlines would cut at are part of the text here.
texts = (
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Cf", "M"], exclude_characters="<"), max_size=20)
    .map(lambda text: "word" + text + "\u2028\u2029")
    .filter(lambda text: text_fault(text) is None)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(texts, st.lists(st.integers(0, 4095), min_size=1, max_size=5)), max_size=4))
def test_what_is_written_is_what_is_read(tmp_path: Path, rows: list[tuple[str, list[int]]]) -> None:
    utterances = [Utterance(f"u{i}", text, "slt", tuple(codes), 0.04) for i, (text, codes) in enumerate(rows)]
    write_utterances(tmp_path / "rows.jsonl", utterances)
    assert read_utterances(tmp_path / "rows.jsonl", 4096) == utterances


def test_a_failing_write_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    former = [Utterance("u1", "one", "slt", (1,), 0.04)]
    write_utterances(path, former)

    def rows():
        yield Utterance("u2", "two", "slt", (2,), 0.04)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_utterances(path, rows())
    assert read_utterances(path) == former
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def audio_manifest(folder: Path, *rows: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_audio_manifest_reads_every_kind_of_row(tmp_path: Path) -> None:
    codes = {k: v for k, v in GOOD.items() if k != "duration_s"} | {"id": "u2", "split": "test"}
    first, second = read_audio_manifest(audio_manifest(tmp_path / "m", AUDIO | {"sample_rate_hz": 16_000}, codes))
    assert (first.audio, first.sample_rate_hz, first.codes) == ("a.wav", 16_000, None)
    assert (second.audio, second.codes, second.split) == (None, (1, 2, 3), "test")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (AUDIO | {"codes": [1]}, "both audio and codes"),
        ({k: v for k, v in AUDIO.items() if k != "audio"}, "neither audio nor codes"),
        (AUDIO | {"sample_rate_hz": 0}, "sample_rate_hz = 0"),
        (AUDIO | {"split": "dev"}, "split = 'dev'"),
        (AUDIO | {"audio": "a\0b.wav"}, "relative path"),
        (AUDIO | {"audio": ""}, "relative path"),
        (AUDIO | {"audio": "."}, "relative path"),
        (AUDIO | {"audio": "../secret.wav"}, "relative path"),
        (AUDIO | {"audio": "a/../../secret.wav"}, "relative path"),
        (AUDIO | {"audio": "/etc/passwd"}, "relative path"),
        (AUDIO | {"audio": "link-out/secret.wav"}, "relative path"),
        (AUDIO | {"audio": "link-file.wav"}, "relative path"),
        (AUDIO | {"audio": "loop.wav"}, "relative path"),
    ],
)
def test_bad_audio_rows_are_refused(tmp_path: Path, one_line, row: dict[str, object], what: str) -> None:
    (tmp_path / "secret.wav").write_text("outside")
    manifest = audio_manifest(tmp_path / "m", row)
    (tmp_path / "m" / "link-out").symlink_to(tmp_path)
    (tmp_path / "m" / "link-file.wav").symlink_to(tmp_path / "secret.wav")
    (tmp_path / "m" / "loop.wav").symlink_to(tmp_path / "m" / "loop.wav")
    with pytest.raises(InvalidInputError) as error:
        read_audio_manifest(manifest, 4096)
    message = one_line(error.value)
    assert what in message and "'u1'" in message


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real.wav").touch()
    (tmp_path / "alias.wav").symlink_to("real.wav")
    assert audio_path(tmp_path, "alias.wav", "u1") == (tmp_path / "real.wav").resolve()


def test_the_data_hash_sees_a_row_that_moves_between_splits(tmp_path: Path) -> None:
    first, second = "first row\n", "second row\n"
    hashes = set()
    for train, selection, test in [(first + second, "", ""), (first, second, ""), (first, "", second)]:
        for split, content in (("train", train), ("selection", selection), ("test", test)):
            (tmp_path / f"{split}.jsonl").write_text(content)
        hashes.add(data_sha256(tmp_path))
    assert len(hashes) == 3


def test_an_absolute_path_is_refused_even_inside_the_folder(tmp_path: Path, one_line) -> None:
    (tmp_path / "real.wav").touch()
    with pytest.raises(InvalidInputError) as error:
        audio_path(tmp_path, str(tmp_path / "real.wav"), "utterance 'u1'")
    assert "relative path" in one_line(error.value)
