import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile

from tests.unit.data.conftest import everything, noise

RATE_HZ = 16_000
TEXTS = ["the golden island", "a silver river", "an iron hill", "a copper sea"]


def save_to_disk(folder: Path, columns: dict[str, list[Any]], types: dict[str, Any] | None = None) -> Path:
    """The files of `Dataset.save_to_disk` of datasets 5.2: two Arrow streams and a state."""
    folder.mkdir(parents=True)
    arrays = {name: pyarrow.array(values, (types or {}).get(name)) for name, values in columns.items()}
    table = pyarrow.table(arrays)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    half = table.num_rows // 2
    for name, part in zip(names, (table.slice(0, half), table.slice(half)), strict=True):
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def wav_bytes(seed: int, seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed=seed), RATE_HZ, format="WAV", subtype="FLOAT")
    return file.getvalue()


def columns(audio: list[Any]) -> dict[str, list[Any]]:
    return {"text": TEXTS, "audio": audio, "id": [f"u{i}" for i in range(4)], "speaker": [19, 19, 20, 20]}


def in_bytes(folder: Path) -> list[Any]:
    return [{"bytes": wav_bytes(i), "path": None} for i in range(4)]


def in_arrays(folder: Path) -> list[Any]:
    return [{"array": noise(0.5, seed=i).tolist(), "sampling_rate": RATE_HZ} for i in range(4)]


def in_files(folder: Path) -> list[Any]:
    return [f"audio/{i}.wav" for i in range(4)]


def in_absolute_files(folder: Path) -> list[Any]:
    return [{"bytes": None, "path": str((folder / f"audio/{i}.wav").absolute())} for i in range(4)]


@pytest.mark.parametrize("audio", [in_bytes, in_arrays, in_files, in_absolute_files])
def test_it_equals_the_manifest_in_json_lines(tmp_path: Path, open_source, audio) -> None:
    root = save_to_disk(tmp_path / "set", columns(audio(tmp_path / "set")))
    (root / "audio").mkdir()
    rows = []
    for i, text in enumerate(TEXTS):
        (root / "audio" / f"{i}.wav").write_bytes(wav_bytes(i))
        rows.append({"id": f"u{i}", "text": text, "voice": "19" if i < 2 else "20", "audio": f"audio/{i}.wav"})
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, lines = open_source(root), open_source(root / "manifest.jsonl")
    assert ours.candidates == lines.candidates and everything(ours) == everything(lines)


def test_rows_without_id_and_speaker_get_some(tmp_path: Path, open_source) -> None:
    values = {"text": TEXTS, "audio": in_bytes(tmp_path)}
    source = open_source(save_to_disk(tmp_path / "set", values))
    assert [row.id for row in source.candidates] == [f"row-{i:08d}" for i in range(4)]
    assert {(row.voice, row.split) for row in source.candidates} == {("unnamed", None)}


def test_the_three_usual_splits_are_kept(tmp_path: Path, open_source, refusal) -> None:
    root = tmp_path / "sets"
    for name in ("train", "validation", "test"):
        save_to_disk(root / name, {"text": TEXTS, "audio": in_bytes(root)})
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    source = open_source(root)
    assert [row.split for row in source.candidates] == ["train"] * 4 + ["selection"] * 4 + ["test"] * 4
    assert len({row.id for row in source.candidates}) == 12
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert {row.split for row in open_source(root).candidates} == {None}
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "dev"]}))
    assert "splits ['train', 'dev']" in refusal(root)


def with_audio(value: Any) -> dict[str, list[Any]]:
    return columns([value] * 4)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"text": TEXTS, "wav": TEXTS}, "no column audio among text, wav"),
        ({"audio": in_files(Path())}, "no column text among audio"),
        ({**columns(in_bytes(Path())), "text": ["one", "...", "x", "y"]}, "row 1, utterance 'u1', text: observed "),
        ({**columns(in_bytes(Path())), "text": ["one", None, "x", "y"]}, "utterance 'u1': observed no key 'text'"),
        ({**columns(in_bytes(Path())), "id": ["a", "b", "a", "c"]}, "utterance 'a': observed two rows"),
        (with_audio("../x.wav"), "a relative path below"),
        (with_audio({"bytes": None, "path": "/etc/passwd"}), "a relative path below"),
        (with_audio({"array": [[0.1, 0.2]], "sampling_rate": RATE_HZ}), "utterance 'u0': observed array of list"),
        (with_audio({"array": [1, 2], "sampling_rate": RATE_HZ}), "array of int64"),
        (with_audio({"array": [0.1], "sampling_rate": 0}), "sampling_rate 0"),
        (with_audio({"array": [0.1] * 100, "sampling_rate": RATE_HZ}), "0.006 s"),
        (with_audio({"file": "x"}), "audio as file"),
        (with_audio(3), "audio as int64"),
        ({**columns([{"bytes": None, "path": None}] * 4)}, "utterance 'u0': observed no audio"),
        (with_audio({"bytes": b"no audio", "path": "a.wav"}), "utterance 'u0', audio in the data: observed unreadable"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, refusal, values: dict[str, list[Any]], what: str) -> None:
    assert what in refusal(save_to_disk(tmp_path / "set", values))


@pytest.mark.parametrize("damage", ["truncated", "missing", "state", "outside"])
def test_damaged_files_are_one_line(tmp_path: Path, refusal, damage: str) -> None:
    root = save_to_disk(tmp_path / "set", columns(in_bytes(tmp_path)))
    first = root / "data-00000-of-00002.arrow"
    if damage == "truncated":
        first.write_bytes(first.read_bytes()[:-2000])
    elif damage == "missing":
        first.unlink()
    elif damage == "state":
        (root / "state.json").write_text("[]")
    else:
        first.rename(tmp_path / "x.arrow")
        (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    assert "set" in refusal(root)


def test_bad_audio_is_dropped_and_counted_when_that_is_wanted(tmp_path: Path, open_source) -> None:
    audio = [{"bytes": data, "path": None} for data in (wav_bytes(0), b"no audio", b"", wav_bytes(1, 0.1))]
    source = open_source(save_to_disk(tmp_path / "set", columns(audio)), drop=True)
    assert [row.id for row in source.candidates] == ["u0"]
    assert source.dropped == {"audio_unreadable": 2, "audio_too_short": 1}


def test_equal_samples_have_equal_hashes_and_another_rate_another(tmp_path: Path, open_source) -> None:
    samples = noise(1.0).astype(np.float64).tolist()
    rates = [RATE_HZ, RATE_HZ, 8_000, 24_000]
    audio = [{"array": samples, "sampling_rate": rate} for rate in rates]
    source = open_source(save_to_disk(tmp_path / "set", columns(audio)))
    hashes = [source.recordings[f"u{i}"].sha256() for i in range(4)]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
