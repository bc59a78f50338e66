"""A corpus that is already speech codes: flat arrays with offsets, and a manifest of one JSON line an utterance.

The manifest may be packed (`manifest.jsonl.gz`). `codes.npz` holds every code in one row; an optional `alignment.npz`
holds two phone labels and a word index a frame.
Legend: U utterances, F frames of one utterance.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class TokenCorpus:
    """Codes of all utterances; `offsets[i]:offsets[i+1]` are utterance i's frames.

    Without an alignment file, `phones` and `words` are empty."""

    rows: list[dict[str, str]]
    codes: np.ndarray
    offsets: np.ndarray
    phones: np.ndarray
    words: np.ndarray

    def codes_of(self, index: int) -> np.ndarray:
        """int codes [F]."""
        return self.codes[self.offsets[index] : self.offsets[index + 1]]


def load_token_corpus(folder: Path) -> TokenCorpus:
    """Reads such a folder."""
    packed = np.load(folder / "codes.npz")
    packed_manifest = folder / "manifest.jsonl.gz"
    if packed_manifest.exists():
        manifest = gzip.decompress(packed_manifest.read_bytes()).decode()
    else:
        manifest = (folder / "manifest.jsonl").read_text()
    rows = [json.loads(line) for line in manifest.splitlines()]
    phones, words = np.zeros((0, 2), dtype=np.int16), np.zeros(0, dtype=np.int16)
    if (folder / "alignment.npz").exists():
        alignment = np.load(folder / "alignment.npz")
        phones, words = alignment["phones"], alignment["words"]
    return TokenCorpus(rows, packed["codes"].astype(np.int64), packed["offsets"], phones, words)
