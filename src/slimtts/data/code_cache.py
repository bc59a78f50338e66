"""Recordings encoded once: codes in shards on disk, found again by the hash of what was recorded.

Only waves of exactly equal length share a batch: near its end a wave has other codes when it is padded (the bundled
codec: 40 of 3,310 codes of 20 human recordings, by a second of silence), and codes must not depend on neighbours.
At equal length that codec gives the same codes alone and in batches of 2, 3, 8 and 24 (measured, 2026-11-21).
Legend: B utterances, N samples, F codec frames.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from slimtts.data.audio import resample
from slimtts.data.sound_files import BadAudioError
from slimtts.data.speech_source import CodecFacts, Recording
from slimtts.storage import atomic_path, remove

logger = logging.getLogger(__name__)

ROWS_A_SHARD = 64  # at most this many recordings are encoded again after a kill
MAX_BATCH_S = 60.0  # of sound in one call of the codec: bounds memory
FORMAT = 2  # of the shards and of what happens to a wave before it is encoded; 1 took silence


@dataclass
class EncodedRecordings:
    """Codes by utterance id, and why the others have none (by id)."""

    codes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)


def codec_fingerprint(codec: Any, name: str) -> str:
    """Equal for codecs that give equal codes: name, class, rates and every weight."""
    kind = f"{type(codec).__module__}.{type(codec).__qualname__}"
    facts = (FORMAT, name, kind, codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes)
    digest = hashlib.sha256(repr(facts).encode())
    modules = {"": codec} if isinstance(codec, torch.nn.Module) else vars(codec)
    for part, module in sorted(modules.items()):
        if isinstance(module, torch.nn.Module):
            for key, tensor in sorted(module.state_dict().items()):
                digest.update(f"{part}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_folder(root: Path, fingerprint: str) -> Path:
    """The folder of one codec's codes below `root`; those of others are removed."""
    mark = fingerprint[:16]
    for other in root.glob("*"):
        if other.name != mark:
            remove(other)
    folder = root / mark
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(".codes-*"):  # by a run that was killed; a folder has one writer
        remove(abandoned)
    return folder


def encode_recordings(
    recordings: Mapping[str, Recording],
    codec: CodecFacts,
    folder: Path,
    drop_bad_audio: bool,
    after_rows: Callable[[int], object] = lambda _: None,
) -> EncodedRecordings:
    """Codes of all recordings by id; what is in `folder` is not encoded again, equal sound is encoded once.

    Raises:
        BadAudioError: a recording cannot be used, unless `drop_bad_audio`.
    """
    result = EncodedRecordings()
    hashes: dict[str, str] = {}
    lengths_s: dict[str, float] = {}

    def refuse(utterance_id: str, error: BadAudioError) -> None:
        if not drop_bad_audio:
            raise error
        result.unusable[utterance_id] = error.reason

    for utterance_id, recording in recordings.items():
        try:
            lengths_s[utterance_id] = recording.header().duration_s
            hashes[utterance_id] = recording.sha256()
        except BadAudioError as error:
            refuse(utterance_id, error)
    known = read_shards(folder, codec.num_codes)
    first_with = {sha256: utterance_id for utterance_id, sha256 in reversed(hashes.items())}
    missing = [utterance_id for sha256, utterance_id in first_with.items() if sha256 not in known]
    missing.sort(key=lambda utterance_id: (lengths_s[utterance_id], hashes[utterance_id]))
    after_rows(len(recordings) - len(missing))
    for start in range(0, len(missing), ROWS_A_SHARD):
        ids = missing[start : start + ROWS_A_SHARD]
        waves: dict[str, torch.Tensor] = {}
        for utterance_id in ids:
            try:
                wave, rate_hz = recordings[utterance_id].read()
                waves[hashes[utterance_id]] = resample(wave, rate_hz, codec.sample_rate_hz)
            except BadAudioError as error:
                refuse(utterance_id, error)
        encoded = dict(_encode(waves, codec))
        if encoded:
            _write_shard(folder, encoded)
        known |= encoded
        after_rows(len(ids))
    bad = {hashes[i]: reason for i, reason in result.unusable.items() if i in hashes}
    for utterance_id, sha256 in hashes.items():
        if sha256 in known:
            result.codes[utterance_id] = known[sha256]
        else:
            result.unusable[utterance_id] = bad[sha256]
    return result


def _encode(waves: Mapping[str, torch.Tensor], codec: CodecFacts) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Hash and codes of each wave [N]; batches of equal length."""
    names = sorted(waves, key=lambda name: (len(waves[name]), name))
    for length, group in groupby(names, key=lambda name: len(waves[name])):
        same = list(group)
        rows = max(1, int(MAX_BATCH_S * codec.sample_rate_hz / length))
        for start in range(0, len(same), rows):
            batch = same[start : start + rows]
            codes = codec.encode(torch.stack([waves[name] for name in batch]))  # [B, N] -> [B, F]
            yield from zip(batch, map(tuple, codes.tolist()), strict=True)


def _write_shard(folder: Path, encoded: Mapping[str, tuple[int, ...]]) -> None:
    names = sorted(encoded)
    final = folder / f"codes-{hashlib.sha256(''.join(names).encode()).hexdigest()[:16]}.npz"
    with atomic_path(final) as tmp:
        np.savez(
            tmp,
            ids=np.array(names, dtype="U64"),
            offsets=np.cumsum([0, *(len(encoded[name]) for name in names)], dtype=np.int64),
            codes=np.array([code for name in names for code in encoded[name]], dtype=np.int32),
        )


def read_shards(folder: Path, num_codes: int) -> dict[str, tuple[int, ...]]:
    """Codes of all sound shards by content hash; damaged shards are removed, so that they are made anew."""
    known: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("codes-*.npz")):
        try:
            with np.load(path, allow_pickle=False) as shard:  # zip members carry checksums
                names, offsets, codes = shard["ids"], shard["offsets"], shard["codes"]
            sound = (
                len(offsets) == len(names) + 1
                and offsets[0] == 0
                and offsets[-1] == len(codes)
                and bool((np.diff(offsets) >= 0).all())
                and (not len(codes) or 0 <= codes.min() <= codes.max() < num_codes)
            )
        except (OSError, EOFError, ValueError, KeyError, BadZipFile, MemoryError):
            sound = False
        if not sound:
            logger.warning("removed %s: it is damaged, its recordings are encoded again", path.name)
            path.unlink()
            continue
        for name, start, end in zip(names.tolist(), offsets[:-1], offsets[1:], strict=True):
            known[name] = tuple(codes[start:end].tolist())
    return known
