"""Hostile audio, tables, manifests, corpora and YAML: refused in one line, or read right; memory bound 1 GiB each,
that of the parsers' children included."""

import gzip
import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from tests.hostile.conftest import MEMORY_BOUND_MIB
from tests.unit.data.test_mutations import MAKERS, mutated, read_all

pytestmark = pytest.mark.hostile

RATE_HZ = 16_000
SEEDS, SEEDS_A_PROCESS = 320, 40  # of each format
HERE = "tests.hostile.test_data"


def read_source(path: str) -> None:
    """Opens a source as a run does, where bad audio stops it, and reads and resamples every recording."""
    import torch

    from slimtts.data.audio import resample
    from slimtts.data.llasa_memmap import TokenRows
    from slimtts.data.sources import open_path
    from slimtts.data.speech_source import CodecFacts
    from slimtts.sandbox import shared_sandbox

    tokens = TokenRows(lambda ids: "", 0, 1, 0)
    facts = CodecFacts(RATE_HZ, 25.0, 4096, lambda waves: torch.zeros(waves.shape[0], 4, dtype=torch.int64))
    try:
        for recording in open_path(Path(path), facts, tokens, drop_bad_audio=False).recordings.values():
            resample(*recording.read(), RATE_HZ)
    finally:
        for module in ("slimtts.data.sound_decoding", "slimtts.data.table_parsing"):
            shared_sandbox(module).close()
        children_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        if children_mib > MEMORY_BOUND_MIB:
            raise RuntimeError(f"a parser took {children_mib:.0f} MiB")


def read_corpus(path: str) -> None:
    """Opens a token corpus as a run does."""
    from slimtts.data.sources import token_corpus_source
    from slimtts.data.speech_source import CodecFacts

    token_corpus_source(Path(path), CodecFacts(RATE_HZ, 25.0, 4096, len))


def read_mutated(kind: str, root: str, first_seed: int) -> None:
    """Reads SEEDS_A_PROCESS damaged forms of a file; `read_all` fails on anything but a refusal or a reading."""
    make, source_of = MAKERS[kind]
    file = make(Path(root))
    whole = file.read_bytes()
    for seed in range(first_seed, first_seed + SEEDS_A_PROCESS):
        file.write_bytes(mutated(whole, seed))
        read_all(source_of(Path(root)))


def voice(seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (0.4 * np.random.default_rng(0).uniform(-1, 1, int(seconds * rate_hz))).astype(np.float32)


def with_audio(root: Path, name: str = "a.wav") -> Path:
    row = {"id": "u1", "text": "hello there", "voice": "v", "audio": name}
    (root / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    return root / "manifest.jsonl"


def write_wav(root: Path, samples: np.ndarray, rate_hz: int = RATE_HZ) -> None:
    soundfile.write(root / "a.wav", samples, rate_hz, subtype="FLOAT")


def patched_wav(root: Path, place: int, value: int, size: int = 4) -> None:
    soundfile.write(root / "a.wav", voice(2.0), RATE_HZ, subtype="PCM_16")
    data = bytearray((root / "a.wav").read_bytes())
    data[place : place + size] = value.to_bytes(size, "little")
    (root / "a.wav").write_bytes(data)


def patched_flac(root: Path, frames: int) -> None:
    soundfile.write(root / "a.flac", voice(2.0), RATE_HZ)
    data = bytearray((root / "a.flac").read_bytes())
    packed = int.from_bytes(data[18:26], "big")
    data[18:26] = ((packed >> 36 << 36) | frames).to_bytes(8, "big")
    (root / "a.wav").write_bytes(data)


def long_flac(root: Path, seconds: int, rate_hz: int, channels: int) -> None:
    """Hours of zeros in some kilobytes."""
    block = np.zeros((rate_hz * 10, channels), np.int16)
    with soundfile.SoundFile(root / "a.wav", "w", rate_hz, channels, "PCM_16", format="FLAC") as file:
        for _ in range(seconds // 10):
            file.write(block)


def click() -> np.ndarray:
    samples = np.zeros(RATE_HZ, np.float32)
    samples[8_000] = 1
    return samples


BAD_AUDIO = {
    "digital silence": (lambda root: write_wav(root, np.zeros(RATE_HZ)), "digital silence"),
    "near silence": (lambda root: write_wav(root, voice() * 1e-4), "above -60 dBFS"),
    "one bit of noise": (lambda root: write_wav(root, np.sign(voice()) / 32768), "above -60 dBFS"),
    "a click": (lambda root: write_wav(root, click()), "above -60 dBFS"),
    "a constant": (lambda root: write_wav(root, np.full(RATE_HZ, 0.5)), "nothing but the value 0.5"),
    "full scale": (lambda root: write_wav(root, np.ones(RATE_HZ)), "nothing but the value 1"),
    "a ramp": (lambda root: write_wav(root, np.linspace(-1, 1, RATE_HZ)), "above -60 dBFS"),
    "clipped": (lambda root: write_wav(root, np.sign(voice())), "at their limit"),
    "clipped and turned down": (lambda root: write_wav(root, np.sign(voice()) * 0.1), "at their limit"),
    "opposite phase": (lambda root: write_wav(root, np.stack([voice(), -voice()], 1)), "cancel each other"),
    "one channel clipped": (lambda root: write_wav(root, np.stack([voice(), np.sign(voice())], 1)), "at their limit"),
    "integers as floats": (lambda root: write_wav(root, voice() * 32768), "samples up to"),
    "NaN": (lambda root: write_wav(root, np.append(voice(), np.nan)), "NaN or infinite"),
    "infinity": (lambda root: write_wav(root, np.append(voice(), -np.inf)), "NaN or infinite"),
    "0 Hz": (lambda root: patched_wav(root, 24, 0), "unreadable"),
    "1 Hz": (lambda root: patched_wav(root, 24, 1), "1 Hz; allowed"),
    "2,147,483,647 Hz": (lambda root: patched_wav(root, 24, 2**31 - 1), "2147483647 Hz"),
    "4,294,967,295 Hz": (lambda root: patched_wav(root, 24, 2**32 - 1), "observed"),
    "0 channels": (lambda root: patched_wav(root, 22, 0, 2), "unreadable"),
    "3 channels": (lambda root: write_wav(root, np.stack([voice()] * 3, 1)), "3 channels"),
    "65,535 channels": (lambda root: patched_wav(root, 22, 65_535, 2), "observed"),
    "no sample": (lambda root: write_wav(root, np.zeros(0)), "empty audio"),
    "no sample stated": (lambda root: patched_wav(root, 40, 0), "empty audio"),
    "half stated": (lambda root: patched_wav(root, 40, RATE_HZ * 2), "after the length"),
    "FLAC, half stated": (lambda root: patched_flac(root, RATE_HZ), "after the length"),
    "FLAC, a third more stated": (lambda root: patched_flac(root, RATE_HZ * 3), "observed"),
    "FLAC, endless stated": (lambda root: patched_flac(root, 2**36 - 1), "0.2 to 600 s"),
    "FLAC, unknown length": (lambda root: patched_flac(root, 0), "0.2 to 600 s"),
    "FLAC bomb in time": (lambda root: long_flac(root, 3600, 16_000, 1), "0.2 to 600 s"),
    "FLAC bomb in rate": (lambda root: long_flac(root, 300, 192_000, 2), "s at 192000 Hz"),
    "FLAC bomb in channels": (lambda root: long_flac(root, 60, 96_000, 8), "8 channels"),
    "FLAC of silence": (lambda root: long_flac(root, 590, 48_000, 2), "digital silence"),
    "text": (lambda root: (root / "a.wav").write_text("no audio"), "unreadable"),
    "nothing": (lambda root: (root / "a.wav").write_bytes(b""), "unreadable"),
    "gzip": (lambda root: (root / "a.wav").write_bytes(gzip.compress(bytes(10_000))), "unreadable"),
    "RIFF and no more": (lambda root: (root / "a.wav").write_bytes(b"RIFF\xff\xff\xff\xffWAVE"), "unreadable"),
    "RIFF of RIFF": (lambda root: (root / "a.wav").write_bytes(b"RIFF\x04\0\0\0WAVE" * 10_000), "unreadable"),
    "OggS": (lambda root: (root / "a.wav").write_bytes(b"OggS" + bytes(range(256)) * 40), "unreadable"),
    "a pipe": (lambda root: os.mkfifo(root / "a.wav"), "no such file"),
    "a folder": (lambda root: (root / "a.wav").mkdir(), "no such file"),
    "a link to a device": (lambda root: (root / "a.wav").symlink_to("/dev/zero"), "below the manifest's folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_is_refused(refused, tmp_path, case):
    make, what = BAD_AUDIO[case]
    make(tmp_path)
    line = refused(f"{HERE}:read_source", [str(with_audio(tmp_path))])
    assert what in line
    assert "u1" in line


@pytest.mark.parametrize("rate_hz", [8_001, 11_027, 44_101, 44_099, 95_999, 191_999])
def test_odd_rates_are_resampled_in_bounded_memory_and_time(attempt, tmp_path, rate_hz):
    write_wav(tmp_path, voice(20.0, rate_hz), rate_hz)
    did = attempt(f"{HERE}:read_source", [str(with_audio(tmp_path))])
    assert did.outcome == "accepted", did
    assert did.memory_mib < 400, did


@pytest.mark.parametrize("first_seed", range(0, SEEDS, SEEDS_A_PROCESS))
@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_bytes_end_no_process(attempt, tmp_path, kind, first_seed):
    did = attempt(f"{HERE}:read_mutated", [kind, str(tmp_path), first_seed], time_bound_s=300)
    assert did.outcome == "accepted", did
    assert did.memory_mib <= MEMORY_BOUND_MIB, did


ROW = {"id": "a", "text": "hello there", "voice": "x", "codes": [1, 2, 3]}


def line(**values: object) -> str:
    return json.dumps({**ROW, **values})


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


MANIFESTS = {
    "a key twice": line().replace('"x"', '"x", "voice": "y"'),
    "deep nesting": "[" * 200_000,
    "deep objects": '{"a":' * 100_000,
    "a text of 18 MB": line(text="a " * 9_000_000),
    "control tokens": line(text="hello <|SPEECH_GENERATION_END|> there"),
    "half a pair": line().replace("hello", "\\ud83d"),
    "no word": line(text="..."),
    "a number as text": line(text=7),
    "truth as id": line(id=True),
    "an id that is a path": line(id="../../up"),
    "an id with a terminal's code": line(id="a\u001b[2J"),
    "a voice with a terminal's code": line(voice="a\u001b]0;x\u0007"),
    "a voice of lines": line(voice="a\nb"),
    "a code of 10**400": line().replace("[1, 2, 3]", "[1" + "0" * 400 + "]"),
    "a negative code": line(codes=[-1]),
    "a code too large": line(codes=[4096]),
    "codes as floats": line(codes=[1.5]),
    "NaN": line().replace("[1, 2, 3]", "[NaN]"),
    "a path with NUL": line(codes=None, audio="a\0.wav"),
    "a path of 5,000 characters": line(codes=None, audio="x/" * 2_500 + "a.wav"),
    "a rate of 10**30": line(codes=None, audio="a.wav", sample_rate_hz=10**30),
    "no UTF-8": "\udcff\udcfe",
    "NUL": "\0" * 1000,
    "blank lines": "\n" * 500_000,
    "ids twice": line() + "\n" + line(),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests_are_refused(refused, tmp_path, case):
    (tmp_path / "m.jsonl").write_text(MANIFESTS[case] + "\n", encoding="utf-8", errors="surrogateescape")
    told = refused(f"{HERE}:read_source", [str(tmp_path / "m.jsonl")])
    assert "m.jsonl" in told or "utterance 'a', a.wav" in told


def write_parquet(path: Path, **columns: object) -> None:
    parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def parquet_bomb(path: Path) -> None:
    """5 million rows of one value in each column."""
    count = 5_000_000
    one = {
        name: pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(count, np.int8)), pyarrow.array(["a" * 200]))
        for name in ("id", "text", "voice")
    }
    codes = pyarrow.ListArray.from_arrays(np.zeros(count + 1, np.int32), pyarrow.array([], pyarrow.int32()))
    write_parquet(path, **one, codes=codes)


def wide_parquet(path: Path) -> None:
    """One cell of 200 MB of one letter, packed into some kilobytes."""
    write_parquet(path, id=["a"], text=["a" * 200_000_000], voice=["x"], codes=[[1]])


FILES = {
    "a hole of 1 TB": ("m.jsonl", hole),
    "a hole as cuts": ("cuts.jsonl", hole),
    "a hole as Parquet": ("m.parquet", hole),
    "a pipe": ("m.jsonl", os.mkfifo),
    "a pipe as Parquet": ("m.parquet", os.mkfifo),
    "a pipe as cuts": ("cuts.jsonl.gz", os.mkfifo),
    "a folder as Parquet": ("m.parquet", Path.mkdir),
    "cuts that unpack to 200 MB of zeros": ("cuts.jsonl.gz", lambda path: write_gz(path, bytes(1 << 20), 200)),
    "cuts that unpack to 200 MB of lines": ("cuts.jsonl.gz", lambda path: write_gz(path, b"\n" * (1 << 20), 200)),
    "cuts that are no gzip": ("cuts.jsonl.gz", lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100))),
    "cuts cut off": ("cuts.jsonl.gz", lambda path: path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])),
    "a Parquet file of rows without end": ("m.parquet", parquet_bomb),
    "a Parquet cell without end": ("m.parquet", wide_parquet),
    "a Parquet footer that lies": ("m.parquet", lambda p: p.write_bytes(b"PAR1" + struct.pack("<I", 2**31) + b"PAR1")),
    "Parquet text that is no UTF-8": (
        "m.parquet", lambda p: write_parquet(p, id=["a"], text=[b"\xff\xfe"], voice=["x"], codes=[[1]])
    ),
    "a column twice": (
        "m.parquet",
        lambda p: parquet.write_table(
            pyarrow.Table.from_arrays(
                [pyarrow.array(v) for v in (["a"], ["b c"], ["d e"], ["x"], [[1]])],
                names=["id", "text", "text", "voice", "codes"],
            ),
            p,
        ),
    ),
}  # fmt: skip


def write_gz(path: Path, block: bytes, count: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(count):
            file.write(block)


@pytest.mark.parametrize("case", FILES)
def test_hostile_files_are_refused(refused, tmp_path, case):
    name, make = FILES[case]
    make(tmp_path / name)
    assert name in refused(f"{HERE}:read_source", [str(tmp_path / name)])


SHAPES = {
    "huge": np.array([2**62, 2**62]),
    "negative": np.array([-1, -64]),
    "infinite": np.array([np.inf, 16]),
    "complex": np.array([4j, 16]),
    "one number": np.array(64),
    "one row of all": np.array([1, 4 << 20]),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_of_token_rows_are_refused(refused, tmp_path, case):
    with (tmp_path / "train_input_ids.memmap").open("wb") as file:
        file.truncate(16 << 20)
    np.save(tmp_path / "train_input_ids_shape.npy", SHAPES[case])
    assert "train_input_ids" in refused(f"{HERE}:read_source", [str(tmp_path)])


CORPORA = {
    "arrays that unpack to 400 MB": np.zeros(200_000_000, np.int16),
    "codes that are objects": np.array([{}], dtype=object),
    "codes that are text": np.array(["1"]),
    "codes that are negative": np.array([-1], np.int16),
}


@pytest.mark.parametrize("case", CORPORA)
def test_hostile_token_corpora_are_refused(refused, tmp_path, case):
    codes = CORPORA[case]
    np.savez_compressed(tmp_path / "codes.npz", codes=codes, offsets=np.array([0, len(codes)]))
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "a", "text": "a word", "voice": "x"}) + "\n")
    told = refused(f"{HERE}:read_corpus", [str(tmp_path)])
    assert "corpus" in told or "codes.npz" in told


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
YAML = {
    "aliases that multiply": BOMB,
    "a value that holds itself": "a: &a [*a]\n",
    "depth": "a: " + "[" * 100_000,
    "depth by lines": "".join(" " * i + f"k{i}:\n" for i in range(2_000)),
    "a bad date": "a: !!timestamp 2024-13-45\n",
    "a bad number": "a: !!int 1" + "0" * 10_000 + "\n",
    "bad bytes": "a: !!binary '***'\n",
    "a call": "a: !!python/object/apply:os.abort []\n",
    "a list as key": "? [a, b]\n: c\n",
    "a key twice": "teacher: {family: nano, family: llasa}\n",
    "a set": "a: !!set {b, c}\n",
    "NUL": "a: \0\n",
    "a tag of 1 MB": "a: !" + "x" * 1_000_000 + " b\n",
}


@pytest.mark.parametrize("case", YAML)
def test_hostile_params_are_refused(refused, tmp_path, case):
    (tmp_path / "params.yaml").write_text(YAML[case])
    assert "params.yaml" in refused("slimtts.params:load_params", [tmp_path / "params.yaml"])


@pytest.mark.parametrize("make", [hole, os.mkfifo, Path.mkdir])
def test_params_that_are_no_ordinary_file_are_refused(refused, tmp_path, make):
    make(tmp_path / "params.yaml")
    assert "params.yaml" in refused("slimtts.params:load_params", [tmp_path / "params.yaml"])
