"""Damaged bytes of every format that a native library parses: read, or refused in one line; never the end of us."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
import torch
from pyarrow import parquet

from slimtts.data.sources import open_path
from slimtts.data.speech_source import CodecFacts
from slimtts.errors import InvalidInputError

SEEDS = 24  # of each format here; tests/hostile tries hundreds
FACTS = CodecFacts(16_000, 25.0, 16, lambda waves: torch.zeros(waves.shape[0], 4, dtype=torch.int64))
ROWS = [{"id": f"u{i}", "text": f"hello there number {i}.", "voice": "v", "audio": "a.flac"} for i in range(3)]


def write_sound(path: Path) -> Path:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 4_000)
    soundfile.write(path, samples, 16_000, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def make_arrow(root: Path) -> Path:
    """Small, so that a changed byte often hits what the parser believes."""
    sound = write_sound(root / "a.wav").read_bytes()[:700]
    audio = [{"bytes": sound, "path": None} for _ in ROWS]
    table = pyarrow.table({name: [row[name] for row in ROWS] for name in ("id", "text")} | {"audio": audio})
    with pyarrow.ipc.new_stream(str(root / "data.arrow"), table.schema) as stream:
        stream.write_table(table)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (root / "a.wav").unlink()
    return root / "data.arrow"


def make_parquet(root: Path) -> Path:
    write_sound(root / "a.flac")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), root / "rows.parquet")
    return root / "rows.parquet"


def make_sound(root: Path, name: str) -> Path:
    rows = [{**ROWS[0], "audio": name}]
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_sound(root / name)


MAKERS = {
    "arrow": (make_arrow, lambda root: root),
    "parquet": (make_parquet, lambda root: root / "rows.parquet"),
    "flac": (lambda root: make_sound(root, "a.flac"), lambda root: root / "manifest.jsonl"),
    "wav": (lambda root: make_sound(root, "a.wav"), lambda root: root / "manifest.jsonl"),
}


def mutated(content: bytes, seed: int) -> bytes:
    """One to four changes, often near the ends: a byte, four bytes of 0xFF or 0x00, a cut, a repeated part."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.choice([rng.randrange(len(data)), rng.randrange(60), len(data) - 1 - rng.randrange(300)])
        kind = rng.random()
        if kind < 0.5:
            data[place] = rng.randrange(256)
        elif kind < 0.8:
            data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)])
        elif kind < 0.9:
            del data[place : place + rng.randint(1, 64)]
        else:
            data[place:place] = data[place : place + rng.randint(1, 64)]
    return bytes(data)


def read_all(source: Path) -> str:
    """What reading everything gives: "read", or the one line that refuses it."""
    try:
        opened = open_path(source, FACTS, None, drop_bad_audio=True)
        for recording in opened.recordings.values():
            recording.read()
            recording.sha256()
    except InvalidInputError as error:
        line = str(error)
        assert "\n" not in line and "observed" in line and "next: " in line
        return line
    return "read"


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_bytes_are_read_or_refused(tmp_path, kind):
    make, source_of = MAKERS[kind]
    file = make(tmp_path)
    whole = file.read_bytes()
    outcomes = []
    for seed in range(SEEDS):
        file.write_bytes(mutated(whole, seed))
        outcomes.append(read_all(source_of(tmp_path)))
    assert any(outcome != "read" for outcome in outcomes)
