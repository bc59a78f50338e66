import json
from pathlib import Path

import pytest
import soundfile

from tests.unit.data.conftest import everything, noise

METADATA = "LJ001-0001|in 1450|in fourteen fifty\r\nLJ001-0002|a plain text|\r\n\r\nLJ001-0003|two fields\r\n"


def ljspeech(root: Path) -> Path:
    (root / "wavs").mkdir(parents=True)
    (root / "metadata.csv").write_text(METADATA)
    for index in (1, 2, 3):
        soundfile.write(root / "wavs" / f"LJ001-000{index}.wav", noise(0.3 + index / 10, 22_050, index), 22_050)
    return root


def libritts(root: Path) -> Path:
    for index, (speaker, chapter) in enumerate([("103", "1241"), ("103", "1250"), ("1034", "7")]):
        folder = root / speaker / chapter
        folder.mkdir(parents=True)
        name = f"{speaker}_{chapter}_000000_000001"
        (folder / f"{name}.normalized.txt").write_text(f"Sentence of {speaker} in {chapter}.\n")
        (folder / f"{name}.original.txt").write_text("not this one")
        soundfile.write(folder / f"{name}.wav", noise(0.4, 24_000, index), 24_000)
    return root


def manifest(root: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    keys = ("id", "text", "voice", "audio")
    (root / "manifest.jsonl").write_text("".join(json.dumps(dict(zip(keys, r, strict=True))) + "\n" for r in rows))
    return root / "manifest.jsonl"


def test_ljspeech_equals_the_manifest_in_json_lines(tmp_path: Path, open_source) -> None:
    root = ljspeech(tmp_path / "lj")
    texts = ["in fourteen fifty", "a plain text", "two fields"]
    rows = [(f"LJ001-000{i}", text, "LJ", f"wavs/LJ001-000{i}.wav") for i, text in enumerate(texts, 1)]
    ours = open_source(root)
    assert ours.candidates == open_source(manifest(root, rows)).candidates
    assert everything(ours) == everything(open_source(root / "manifest.jsonl"))


def test_libritts_equals_the_manifest_in_json_lines(tmp_path: Path, open_source) -> None:
    root = libritts(tmp_path / "tts")
    rows = []
    for speaker, chapter in [("103", "1241"), ("103", "1250"), ("1034", "7")]:
        name = f"{speaker}_{chapter}_000000_000001"
        rows.append((name, f"Sentence of {speaker} in {chapter}.", speaker, f"{speaker}/{chapter}/{name}.wav"))
    assert everything(open_source(root)) == everything(open_source(manifest(root, rows)))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("LJ001-0001", "line 1, utterance 'LJ001-0001': observed 1 fields"),
        ("a|b|c|d", "'a': observed 4 fields"),
        ("LJ001-0001|...|", "'LJ001-0001', text: observed '...'"),
        ("../up|some text|", "observed id = '../up'"),
        ("LJ001-0009|some text|", "utterance 'LJ001-0009', LJ001-0009.wav: observed no such file"),
        ("LJ001-0001|one|\nLJ001-0001|two|", "utterance 'LJ001-0001': observed two rows"),
        ("", "no rows"),
    ],
)
def test_a_bad_line_of_ljspeech_is_named(tmp_path: Path, refusal, line: str, what: str) -> None:
    root = ljspeech(tmp_path / "lj")
    (root / "metadata.csv").write_text(line + "\n")
    assert what in refusal(root)


def test_files_that_are_not_utf8_are_named(tmp_path: Path, refusal) -> None:
    root = ljspeech(tmp_path / "lj")
    (root / "metadata.csv").write_bytes(b"a|\xff|")
    assert "metadata.csv" in refusal(root)
    root = libritts(tmp_path / "tts")
    next(root.glob("*/*/*.normalized.txt")).write_bytes(b"\xff")
    assert ".normalized.txt" in refusal(root)


def test_a_bad_text_of_libritts_is_named(tmp_path: Path, refusal) -> None:
    root = libritts(tmp_path / "tts")
    (root / "1034" / "7" / "1034_7_000000_000001.normalized.txt").write_text(" \n")
    assert "utterance '1034_7_000000_000001', text: observed empty" in refusal(root)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, refusal) -> None:
    root = ljspeech(tmp_path / "lj")
    (root / "wavs" / "LJ001-0001.wav").rename(tmp_path / "outside.wav")
    (root / "wavs" / "LJ001-0001.wav").symlink_to(tmp_path / "outside.wav")
    assert "a relative path below" in refusal(root)


def test_missing_audio_is_dropped_and_counted_when_that_is_wanted(tmp_path: Path, open_source) -> None:
    root = libritts(tmp_path / "tts")
    (root / "1034" / "7" / "1034_7_000000_000001.wav").unlink()
    source = open_source(root, drop=True)
    assert len(source.candidates) == 2 and source.dropped == {"audio_missing": 1}
