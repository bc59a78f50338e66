"""Data of strangers: no path in it leads out of its folder, whichever kind of source names it."""

import gzip
import json
import shutil

import numpy as np
import pyarrow
import pytest
import soundfile
import torch
from pyarrow import parquet

from slimtts.data.sources import open_path
from slimtts.data.speech_source import CodecFacts
from slimtts.errors import InvalidInputError

FACTS = CodecFacts(16_000, 25.0, 16, lambda waves: torch.zeros(waves.shape[0], 4, dtype=torch.int64))


def refused(error):
    told = str(error.value)
    assert "\n" not in told
    assert "observed" in told
    assert "next:" in told
    return told


@pytest.fixture
def secret(tmp_path):
    """A sound file outside the data root: nothing but its place is wrong with it."""
    path = tmp_path / "secret.wav"
    soundfile.write(path, np.sin(np.arange(16_000) / 20) * 0.3, 16_000)
    return path


def manifest_row(audio):
    return {"id": "u1", "text": "hello there.", "voice": "v", "audio": audio}


def as_manifest(root, audio):
    (root / "manifest.jsonl").write_text(json.dumps(manifest_row(audio)) + "\n")
    return root / "manifest.jsonl"


def as_parquet(root, audio):
    parquet.write_table(pyarrow.Table.from_pylist([manifest_row(audio)]), root / "rows.parquet")
    return root / "rows.parquet"


def as_cuts(root, audio):
    source = {"type": "file", "channels": [0], "source": audio}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16_000, "duration": 1.0}
    spoken = {"id": "s", "start": 0.0, "duration": 1.0, "text": "hello there.", "speaker": "v"}
    cut = {
        "type": "MonoCut",
        "id": "u1",
        "start": 0.0,
        "duration": 1.0,
        "supervisions": [spoken],
        "recording": recording,
    }
    with gzip.open(root / "cuts.jsonl.gz", "wt") as lines:
        lines.write(json.dumps(cut) + "\n")
    return root / "cuts.jsonl.gz"


def as_dataset(root, audio):
    table = pyarrow.table({"text": ["hello there."], "audio": [audio]})
    with pyarrow.OSFile(str(root / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return root


WAYS_OUT = {
    "absolute": lambda root, secret: str(secret),
    "up": lambda root, secret: "../secret.wav",
    "up and down": lambda root, secret: f"../{root.name}/../secret.wav",
    "linked file": lambda root, secret: (root / "in.wav").symlink_to(secret) or "in.wav",
    "linked folder": lambda root, secret: (root / "in").symlink_to(secret.parent) or "in/secret.wav",
    "link to a link": lambda root, secret: (
        (root / "a").symlink_to(secret), (root / "in.wav").symlink_to("a"), "in.wav"
    )[-1],
    "NUL": lambda root, secret: "in\0.wav",
}  # fmt: skip


@pytest.mark.parametrize("way_out", WAYS_OUT)
@pytest.mark.parametrize("kind", [as_manifest, as_parquet, as_cuts, as_dataset], ids=lambda kind: kind.__name__)
def test_no_row_leads_out_of_its_folder(tmp_path, secret, kind, way_out):
    root = tmp_path / "data"
    root.mkdir()
    source = kind(root, WAYS_OUT[way_out](root, secret))
    for drop in (False, True):  # dropping bad audio does not drop this
        with pytest.raises(InvalidInputError) as error:
            open_path(source, FACTS, None, drop)
        assert "below the manifest's folder" in refused(error)


@pytest.mark.parametrize("kind", [as_manifest, as_parquet, as_cuts, as_dataset], ids=lambda kind: kind.__name__)
def test_the_same_sound_in_its_folder_is_read(tmp_path, secret, kind):
    root = tmp_path / "data"
    root.mkdir()
    secret.rename(root / "in.wav")
    source = open_path(kind(root, "in.wav"), FACTS, None, False)
    assert len(source.candidates) == 1


def test_the_files_of_a_dataset_lie_in_it(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    as_dataset(root, "x.wav")
    (root / "data.arrow").rename(tmp_path / "data.arrow")
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../data.arrow"}]}))
    with pytest.raises(InvalidInputError) as error:
        open_path(root, FACTS, None, False)
    refused(error)


@pytest.mark.parametrize("utterance", ["../../secret", "a/../../../secret", "/etc/passwd"])
def test_an_id_of_ljspeech_is_no_path(tmp_path, secret, utterance):
    root = tmp_path / "data"
    (root / "wavs").mkdir(parents=True)
    (root / "metadata.csv").write_text(f"{utterance}|hello|hello there\n")
    with pytest.raises(InvalidInputError) as error:
        open_path(root, FACTS, None, True)
    refused(error)


def test_the_wavs_of_ljspeech_lie_in_it(tmp_path, secret):
    root = tmp_path / "data"
    root.mkdir()
    (root / "wavs").symlink_to(tmp_path)
    (root / "metadata.csv").write_text("secret|hello|hello there\n")
    with pytest.raises(InvalidInputError) as error:
        open_path(root, FACTS, None, True)
    assert "below the manifest's folder" in refused(error)


@pytest.mark.parametrize("linked", ["a.wav", "a.normalized.txt"])
def test_sounds_and_texts_of_libritts_lie_in_it(tmp_path, secret, linked):
    chapter = tmp_path / "data" / "12" / "34"
    chapter.mkdir(parents=True)
    (tmp_path / "text").write_text("words of a stranger.")
    (chapter / "a.normalized.txt").write_text("hello there.")
    shutil.copy(secret, chapter / "a.wav")
    (chapter / linked).unlink()
    (chapter / linked).symlink_to(secret if linked == "a.wav" else tmp_path / "text")
    with pytest.raises(InvalidInputError) as error:
        open_path(tmp_path / "data", FACTS, None, True)
    assert "below the manifest's folder" in refused(error)
