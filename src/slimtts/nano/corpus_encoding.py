"""Encodes the spoken corpus: what the language model is trained on and what the bundle ships.

Legend: U utterances, F frames of one utterance.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from slimtts.codec.nano_codec import NanoCodec
from slimtts.nano.speech_synthesis import SpokenUtterance, read_corpus
from slimtts.storage import atomic_path


def frame_phones(utterance: SpokenUtterance, symbols: dict[str, int], frames: int, frame_s: float) -> np.ndarray:
    """Phone label of each half frame: [F, 2]."""
    ends = np.array([end for _, end in utterance.phones])
    ids = np.array([symbols[p] for p, _ in utterance.phones])
    centres_s = (np.arange(2 * frames) + 0.5) * frame_s / 2
    return ids[np.minimum(np.searchsorted(ends, centres_s), len(ids) - 1)].reshape(frames, 2).astype(np.int16)


def frame_words(utterance: SpokenUtterance, frames: int, frame_s: float) -> np.ndarray:
    """Index of the word spoken in each frame: [F]; silence belongs to a neighbouring word."""
    centres_s = (np.arange(frames) + 0.5) * frame_s
    found = np.searchsorted(np.array(utterance.word_ends_s), centres_s)
    return np.minimum(found, len(utterance.word_ends_s) - 1).astype(np.int16)


def _ended(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def encode_corpus(corpus: Path, codec: NanoCodec, out: Path, batch_utterances: int = 32) -> None:
    """Encodes every utterance where the codec is; those of equal length share a batch: no code depends on padding."""
    utterances, frame_s = list(read_corpus(corpus)), codec.samples_per_frame / codec.sample_rate_hz
    symbols = {p: i for i, p in enumerate(sorted({p for u, _ in utterances for p, _ in u.phones}))}
    codes: list[np.ndarray | None] = [None] * len(utterances)
    by_length: dict[int, list[int]] = {}
    for index, (utterance, _) in enumerate(utterances):
        by_length.setdefault(utterance.num_samples, []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_utterances):
            chunk = indices[start : start + batch_utterances]
            audio = np.stack([utterances[i][1] for i in chunk]).astype(np.float32) / 32768
            rows = codec.encode(torch.from_numpy(audio).to(codec.window.device)).cpu().numpy()
            for i, row in zip(chunk, rows, strict=True):
                codes[i] = row
    manifest = [{"id": u.id, "text": _ended(u.text), "voice": u.voice, "split": u.split} for u, _ in utterances]
    done = [c for c in codes if c is not None]
    frames = [len(c) for c in done]
    spoken = [(u, n) for (u, _), n in zip(utterances, frames, strict=True)]
    with atomic_path(out) as tmp:
        tmp.mkdir()
        np.savez_compressed(
            tmp / "codes.npz", codes=np.concatenate(done).astype(np.int16), offsets=np.cumsum([0, *frames])
        )
        np.savez_compressed(
            tmp / "alignment.npz",
            phones=np.concatenate([frame_phones(u, symbols, n, frame_s) for u, n in spoken]),
            words=np.concatenate([frame_words(u, n, frame_s) for u, n in spoken]),
        )
        (tmp / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifest))
