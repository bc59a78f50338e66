"""Makes the training speech: sentences of the grammar, spoken by flite, trimmed and packed into shards.

The audio is exact to the phone: flite prints the end of every phone, so each utterance starts 80 ms before its
first phone and each word's end is known. Shards are written once and kept with their hashes, so an interrupted run goes
on, and a shard that is not what was written is spoken again.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from slimtts.errors import MissingToolError
from slimtts.nano.grammar import sample_sentence, split_of
from slimtts.storage import atomic_path, changed_file, files_sha256, read_hashes

SAMPLE_RATE_HZ = 16_000
VOICES = ("slt", "rms", "awb")
DURATION_STRETCH = 0.85
MARGIN_S = 0.08
FRAME_SAMPLES = 640  # one codec frame: 40 ms
UTTERANCES_PER_SHARD = 500


@dataclass(frozen=True)
class SpokenUtterance:
    """One utterance of the corpus; `phones` are (symbol, end in seconds from the start of the trimmed audio)."""

    id: str
    text: str
    voice: str
    split: str
    num_samples: int
    phones: list[tuple[str, float]]
    word_ends_s: list[float]


def require_flite() -> str:
    """Path of the flite program.

    Raises:
        MissingToolError: flite is not installed.
    """
    path = shutil.which("flite")
    if path is None:
        raise MissingToolError("flite", "it speaks the training corpus", "install Debian's package flite")
    return path


def _speak(text: str, voice: str) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """int16 samples at 16 kHz and (phone, end_s), both as flite gives them."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        options = ["-voice", voice, "--setf", f"duration_stretch={DURATION_STRETCH}", "-psdur", "-t", text]
        command = [require_flite(), *options, "-o", wav.name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        samples, rate_hz = soundfile.read(wav.name, dtype="int16")
    if rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"flite voice {voice}: {rate_hz} Hz, expected {SAMPLE_RATE_HZ}")
    pairs = (item.rsplit(":", 1) for item in printed.split())
    return samples, [(phone, float(end_s)) for phone, end_s in pairs]


@cache
def phones_in_word(word: str) -> int:
    """How many phones flite gives a word spoken alone."""
    return sum(phone != "pau" for phone, _ in _speak(word, VOICES[0])[1])


def speak_utterance(utterance_id: str, text: str, voice: str) -> tuple[SpokenUtterance, np.ndarray] | None:
    """Audio trimmed to 80 ms around the speech; None when the phones cannot be assigned to the words."""
    samples, timed = _speak(text, voice)
    spoken = [i for i, (phone, _) in enumerate(timed) if phone != "pau"]
    counts = [phones_in_word(word) for word in text.split()]
    if sum(counts) != len(spoken):
        return None
    speech_start_s = timed[spoken[0] - 1][1] if spoken[0] else 0.0
    start_s = max(0.0, speech_start_s - MARGIN_S)
    end_s = timed[spoken[-1]][1] + MARGIN_S
    clip = samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    clip = np.pad(clip, (0, -len(clip) % FRAME_SAMPLES))
    phones = [(phone, round(end - start_s, 4)) for phone, end in timed if end > start_s]
    ends = np.cumsum(counts) - 1
    word_ends_s = [round(timed[spoken[i]][1] - start_s, 4) for i in ends]
    return SpokenUtterance(utterance_id, text, voice, split_of(text), len(clip), phones, word_ends_s), clip


def _write_shard(folder: Path, index: int, seed: int) -> None:
    rng = random.Random(f"{seed}/{index}")
    utterances, clips, dropped = [], [], 0
    for number in range(UTTERANCES_PER_SHARD):
        made = speak_utterance(f"nano-{index:04d}-{number:03d}", sample_sentence(rng), rng.choice(VOICES))
        if made is None:
            dropped += 1
            continue
        utterances.append(made[0])
        clips.append(made[1])
    with atomic_path(folder / f"shard-{index:04d}.npy") as tmp, tmp.open("wb") as file:
        np.save(file, np.concatenate(clips))
    with atomic_path(folder / f"shard-{index:04d}.jsonl") as tmp:
        tmp.write_text("".join(json.dumps(asdict(u)) + "\n" for u in utterances))
    with atomic_path(_hashes_of(folder, index)) as tmp:
        names = [f"shard-{index:04d}{kind}" for kind in (".npy", ".jsonl")]
        tmp.write_text(json.dumps({name: files_sha256([folder / name]) for name in names}))
    print(f"shard {index}: {len(utterances)} utterances, {dropped} dropped (phones do not match words)", flush=True)


def _hashes_of(folder: Path, index: int) -> Path:
    return folder / ".hashes" / f"shard-{index:04d}.json"


def _is_there(folder: Path, index: int) -> bool:
    """Both files of a shard as they were written; without hashes, of an earlier version or a kill, with a line."""
    files = [folder / f"shard-{index:04d}{kind}" for kind in (".npy", ".jsonl")]
    if not all(file.is_file() for file in files):
        return False
    hashes = read_hashes(_hashes_of(folder, index))
    changed = changed_file(folder, hashes) if hashes else None
    if hashes is None:
        print(f"shard {index}: without hashes, its content is not verified", flush=True)
    if changed:
        print(f"shard {index}: {changed} is not what was written, the shard is spoken again", flush=True)
    return changed is None


def make_corpus(folder: Path, num_utterances: int, seed: int, workers: int = 2) -> None:
    """Writes the shards that are missing; texts and voices depend on `seed` and the shard's number alone."""
    require_flite()
    folder.mkdir(parents=True, exist_ok=True)
    num_shards = -(-num_utterances // UTTERANCES_PER_SHARD)
    missing = [index for index in range(num_shards) if not _is_there(folder, index)]
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda i: _write_shard(folder, i, seed), missing):
            pass


def _read_samples(index_file: Path) -> np.ndarray:
    """int16 samples of a shard: from the disk as they are needed, or all at once where they are packed as FLAC."""
    packed = index_file.with_suffix(".flac")
    if not packed.exists():
        return np.load(index_file.with_suffix(".npy"), mmap_mode="r")
    samples, rate_hz = soundfile.read(packed, dtype="int16")
    if rate_hz != SAMPLE_RATE_HZ:
        raise ValueError(f"{packed}: {rate_hz} Hz, expected {SAMPLE_RATE_HZ}")
    return samples


def read_corpus(folder: Path) -> Iterator[tuple[SpokenUtterance, np.ndarray]]:
    """Yields (utterance, int16 samples) of every finished shard, in order; fields of other makers are left out."""
    names = [field.name for field in fields(SpokenUtterance)]
    for index_file in sorted(folder.glob("shard-*.jsonl")):
        samples = _read_samples(index_file)
        start = 0
        for line in index_file.read_text().splitlines():
            row = json.loads(line)
            utterance = SpokenUtterance(**{k: row[k] for k in names} | {"phones": [(p, e) for p, e in row["phones"]]})
            yield utterance, samples[start : start + utterance.num_samples]
            start += utterance.num_samples
