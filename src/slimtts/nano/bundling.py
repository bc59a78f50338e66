"""Assembles the package data of the bundled teacher: weights, tokenised corpus, and a few originals to listen to."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import soundfile

from slimtts.nano.layout import NanoFolders
from slimtts.nano.speech_synthesis import SAMPLE_RATE_HZ, read_corpus
from slimtts.storage import atomic_path
from slimtts.teachers.nano import bundle_folder

ORIGINALS = 12
LIMIT_MB = 40


def _write_originals(corpus: Path, out: Path) -> None:
    out.mkdir()
    written = 0
    for utterance, audio in read_corpus(corpus):
        if utterance.split == "test":
            soundfile.write(out / f"{utterance.id}.flac", audio, SAMPLE_RATE_HZ)
            written += 1
        if written == ORIGINALS:
            return


def assemble_bundle(folders: NanoFolders) -> Path:
    """Replaces each part of the bundle by what the recipe made; the card is written by its own step."""
    out = bundle_folder()
    out.mkdir(exist_ok=True)
    for name, source in (("teacher", folders.teacher), ("codec", folders.codec), ("asr", folders.asr)):
        if source.exists():
            with atomic_path(out / name) as tmp:
                shutil.copytree(source, tmp)
    with atomic_path(out / "corpus") as tmp:
        tmp.mkdir()
        shutil.copy(folders.tokens / "codes.npz", tmp)
        manifest = (folders.tokens / "manifest.jsonl").read_bytes()
        # A fixed time stamp: the same corpus gives the same bytes.
        (tmp / "manifest.jsonl.gz").write_bytes(gzip.compress(manifest, mtime=0))
    if folders.corpus.exists():
        with atomic_path(out / "originals") as tmp:
            _write_originals(folders.corpus, tmp)
    for file in out.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes private files; a package is for everybody on the machine
    size_mb = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 2**20
    print(f"{out}: {size_mb:.1f} MB of {LIMIT_MB}")
    return out
