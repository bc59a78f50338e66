"""A corpus that is already speech codes: flat arrays with offsets, and a manifest of one JSON line an utterance.

The manifest may be packed (`manifest.jsonl.gz`). `codes.npz` holds every code in one row; an optional `alignment.npz`
holds two phone labels and a word index a frame.
Legend: U utterances, F frames of one utterance.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtts.outside_files import check_expansion, check_regular, numbered_lines, parse_json

NEXT = "restore the folder from where it was published"


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
    """Reads such a folder.

    Raises:
        InvalidInputError: a file is missing, or unpacks to far more than it is.
        ValueError: arrays that are no rows of whole numbers, or lines that are no JSON.
    """
    packed = _arrays(folder / "codes.npz")
    manifest = folder / "manifest.jsonl.gz"
    if not manifest.exists():
        manifest = folder / "manifest.jsonl"
    rows = [parse_json(line) for _, line in numbered_lines(manifest, str(manifest), "the rows of a corpus", NEXT)]
    codes, offsets = packed["codes"], packed["offsets"]
    if {codes.dtype.kind, offsets.dtype.kind} - set("iu") or codes.ndim != 1 or offsets.ndim != 1:
        raise ValueError(f"codes of {codes.dtype} {codes.shape}, offsets of {offsets.dtype} {offsets.shape}")
    phones, words = np.zeros((0, 2), dtype=np.int16), np.zeros(0, dtype=np.int16)
    if (folder / "alignment.npz").exists():
        alignment = _arrays(folder / "alignment.npz")
        phones, words = alignment["phones"], alignment["words"]
    return TokenCorpus(rows, codes.astype(np.int64), offsets, phones, words)


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    """An npz file whose members become no more than what `check_expansion` allows."""
    size = check_regular(path, str(path), "arrays of a corpus", NEXT)
    with zipfile.ZipFile(path) as members:
        check_expansion(sum(member.file_size for member in members.infolist()), size, str(path), NEXT)
    arrays: Mapping[str, np.ndarray] = np.load(path, allow_pickle=False)
    return arrays
