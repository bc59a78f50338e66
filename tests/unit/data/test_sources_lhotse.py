import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from slimtts.data.speech_source import FileRecording
from tests.unit.data.conftest import everything, noise

RATE_HZ = 16_000


def cut(name: str, audio: str, start: float = 0.0, duration: float = 0.5, whole_s: float = 0.5) -> dict[str, Any]:
    """As `MonoCut.to_dict` of lhotse 1.33 gives it."""
    return {
        "id": f"{name}-0",
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [
            {
                "id": name, "recording_id": name, "start": 0.0, "duration": duration, "channel": 0,
                "text": f"sentence {name}", "language": "English", "speaker": "19",
            }
        ],
        "recording": {
            "id": name,
            "sources": [{"type": "file", "channels": [0], "source": audio}],
            "sampling_rate": RATE_HZ,
            "num_samples": int(whole_s * RATE_HZ),
            "duration": whole_s,
            "channel_ids": [0],
        },
        "custom": {"dataloading_info": {"rank": 0}},
        "type": "MonoCut",
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", noise(0.5, seed=index), RATE_HZ)
    soundfile.write(tmp_path / "long.wav", noise(3.0, seed=9), RATE_HZ)
    return tmp_path


def write(folder: Path, *cuts: dict[str, Any], packed: bool = False) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in cuts)
    path = folder / ("cuts.jsonl.gz" if packed else "cuts.jsonl")
    path.write_bytes(gzip.compress(lines.encode())) if packed else path.write_text(lines)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_it_equals_the_manifest_in_json_lines(folder: Path, open_source, packed: bool) -> None:
    rows = [{"id": f"{i}-0", "text": f"sentence {i}", "voice": "19", "audio": f"{i}.wav"} for i in range(3)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cuts = [cut("0", "0.wav"), cut("1", str(folder / "1.wav")), cut("2", "./2.wav")]
    ours, lines = open_source(write(folder, *cuts, packed=packed)), open_source(folder / "manifest.jsonl")
    assert ours.candidates == lines.candidates and everything(ours) == everything(lines)


def test_a_cut_of_a_long_recording_is_its_part_alone(folder: Path, open_source) -> None:
    parts = [(0.0, 1.0), (1.0, 0.75), (1.75, 1.26)]  # the last ends 10 ms late, as rounded manifests do
    cuts = [cut(f"p{i}", "long.wav", start, length, 3.0) for i, (start, length) in enumerate(parts)]
    source = open_source(write(folder, *cuts))
    assert [row.duration_s for row in source.candidates] == [1.0, 0.75, 1.25]
    whole, _ = FileRecording("x", folder / "long.wav").read()
    waves = [source.recordings[row.id].read()[0] for row in source.candidates]
    assert torch.equal(torch.cat(waves), whole)
    assert len({source.recordings[row.id].sha256() for row in source.candidates}) == 3


def changed(path: str, value: object) -> dict[str, Any]:
    row = copy.deepcopy(cut("1", "1.wav"))
    *parents, last = path.split(".")
    place: Any = row
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return row


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (changed("type", "MultiCut"), "type MultiCut"),
        (changed("type", "MixedCut"), "type MixedCut"),
        (changed("recording", None), "features only"),
        (changed("recording.sources.0.type", "command"), "audio source command"),
        (changed("recording.sources.0.type", "url"), "audio source url"),
        (changed("recording.sources.0.channels", [0, 1]), "2 channels"),
        (changed("recording.transforms", [{"name": "Speed"}]), "transforms"),
        (changed("supervisions", []), "0 supervisions"),
        (changed("supervisions.0.duration", 0.9), "beyond its cut"),
        (changed("supervisions.0.start", -0.2), "beyond its cut"),
        (changed("supervisions.0.text", None), "no key 'text'"),
        (changed("supervisions.0.speaker", None), "no key 'voice'"),
        (changed("start", -1.0), "bad value of start"),
        (changed("recording.sources.0.source", "../1.wav"), "a relative path below"),
        (changed("recording.sources.0.source", "/etc/passwd"), "a relative path below"),
        (changed("recording.sampling_rate", 8_000), "16000 Hz in the header"),
        (cut("1", "1.wav", 0.3, 0.5, 0.8), "a segment to 0.800 s"),
    ],
)
def test_what_is_not_supported_is_refused_by_id(folder: Path, refusal, row: dict[str, Any], what: str) -> None:
    message = refusal(write(folder, cut("0", "0.wav"), row))
    assert what in message and "'1-0'" in message


def test_lines_and_files_that_cannot_be_read_are_named(folder: Path, refusal) -> None:
    path = write(folder, cut("0", "0.wav"))
    path.write_text(path.read_text() + "{broken\n")
    assert "cuts.jsonl line 2" in refusal(path)
    packed = write(folder, cut("0", "0.wav"), packed=True)
    packed.write_bytes(packed.read_bytes()[:-12])
    assert "cuts.jsonl.gz" in refusal(packed)
    packed.unlink()
    assert "cuts.jsonl.gz" in refusal(packed)


def test_bad_audio_is_dropped_and_counted_when_that_is_wanted(folder: Path, open_source) -> None:
    cuts = [cut("0", "0.wav"), cut("7", "7.wav"), cut("8", "long.wav", 2.8, 0.5, 3.0)]
    source = open_source(write(folder, *cuts), drop=True)
    assert [row.id for row in source.candidates] == ["0-0"]
    assert source.dropped == {"audio_missing": 1, "audio_incomplete": 1}
