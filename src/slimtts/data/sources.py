"""Where utterances come from: the teacher's token corpus, or what a path holds.

Candidates are cheap to list; codes are computed only for those that were chosen.
"""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from slimtts.data.hf_dataset import is_hf_dataset, read_hf_dataset
from slimtts.data.lhotse_cuts import read_cuts
from slimtts.data.llasa_memmap import TokenRows, is_llasa_memmap, llasa_memmap_source
from slimtts.data.manifest import check_codes, corpus_row, read_audio_manifest
from slimtts.data.parquet_manifest import read_parquet_manifest
from slimtts.data.speech_folder import is_libritts, is_ljspeech, read_libritts, read_ljspeech
from slimtts.data.speech_source import CodecFacts, SpeechSource, entries_source, recordings_source
from slimtts.data.splits import Candidate
from slimtts.data.token_corpus import load_token_corpus
from slimtts.errors import InvalidInputError
from slimtts.outside_files import numbered_lines, parse_json

ALLOWED = (
    "a manifest.jsonl, a .parquet manifest, Lhotse's cuts.jsonl or cuts.jsonl.gz, or a folder as LJSpeech "
    "(metadata.csv, wavs/), LibriTTS (SPEAKER/CHAPTER/*.normalized.txt), datasets.save_to_disk (state.json or "
    "dataset_dict.json) or LLaSA's token rows (train_input_ids.memmap)"
)
FOLDER_KINDS = {
    "hf_dataset": is_hf_dataset,
    "llasa_memmap": is_llasa_memmap,
    "ljspeech": is_ljspeech,
    "libritts": is_libritts,
}


def source_kind(path: Path) -> str:
    """manifest, parquet, lhotse, ljspeech, libritts, hf_dataset or llasa_memmap, by what is at the path.

    Raises:
        InvalidInputError: nothing is there, or nothing of these.
    """
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name that the file system does not take
        raise InvalidInputError(f"subset_data.source {path}", error, ALLOWED, "correct subset_data.source") from None
    if is_folder:
        kinds = [kind for kind, is_kind in FOLDER_KINDS.items() if is_kind(path)]
        if len(kinds) == 1:
            return kinds[0]
        found = " and ".join(kinds) or f"a folder with {_listing(path)}"
        raise InvalidInputError(f"subset_data.source {path}", found, ALLOWED, "correct subset_data.source")
    if path.suffix == ".parquet":
        return "parquet"
    if path.name.endswith(".jsonl.gz"):
        return "lhotse"
    if path.suffix == ".jsonl":
        return "lhotse" if _first_row_is_a_cut(path) else "manifest"
    observed = f"a file '{path.name}'" if is_there else "no such file or folder"
    raise InvalidInputError(f"subset_data.source {path}", observed, ALLOWED, "correct subset_data.source")


def _listing(folder: Path) -> str:
    names = sorted(child.name + "/" * child.is_dir() for child in folder.iterdir() if child.name[0] != ".")
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


def _first_row_is_a_cut(path: Path) -> bool:
    try:
        _, line = next(numbered_lines(path, str(path), "a manifest", "correct the path"), (0, ""))
        row = parse_json(line)
    except (InvalidInputError, ValueError):  # the manifest's reader says what is wrong
        return False
    return isinstance(row, dict) and str(row.get("type", "")).endswith("Cut")


def open_path(path: Path, codec: CodecFacts, tokens: TokenRows, drop_bad_audio: bool) -> SpeechSource:
    """The source at a path; every audio file's header is checked now, its samples when its codes are asked for.

    `tokens` says how the teacher reads LLaSA's token rows.

    Raises:
        InvalidInputError: no such kind of source, or a row or an audio file is bad (files: unless `drop_bad_audio`).
    """
    kind = source_kind(path)
    if kind == "llasa_memmap":
        return llasa_memmap_source(path, tokens, codec.frame_rate_hz)
    if kind in ("lhotse", "hf_dataset"):
        rows = read_cuts(path) if kind == "lhotse" else read_hf_dataset(path)
        return recordings_source(str(path), rows, codec, drop_bad_audio)
    if kind in ("ljspeech", "libritts"):
        entries = read_ljspeech(path) if kind == "ljspeech" else read_libritts(path)
        return entries_source(str(path), path, entries, codec, drop_bad_audio)
    read_manifest = read_parquet_manifest if kind == "parquet" else read_audio_manifest
    return entries_source(str(path), path.parent, read_manifest(path, codec.num_codes), codec, drop_bad_audio)


def token_corpus_source(folder: Path, codec: CodecFacts) -> SpeechSource:
    """A folder that `slimtts.data.token_corpus` reads.

    Raises:
        InvalidInputError: files are missing or damaged, rows and codes disagree, or a code is unknown.
    """
    next_step = "restore the folder from where it was published"
    try:
        corpus = load_token_corpus(folder)
        rows = [corpus_row(row, f"corpus {folder} row {number}") for number, row in enumerate(corpus.rows, start=1)]
    except (OSError, BadZipFile, ValueError, KeyError, MemoryError) as error:  # ValueError: no JSON, or a pickle
        raise InvalidInputError(f"corpus {folder}", repr(error), "a complete token corpus", next_step) from None
    if len(rows) + 1 != len(corpus.offsets) or not rows:
        raise InvalidInputError(
            f"corpus {folder}", f"{len(rows)} rows and {len(corpus.offsets) - 1} utterances", "as many", next_step
        )
    if corpus.offsets[0] != 0 or corpus.offsets[-1] != len(corpus.codes) or (np.diff(corpus.offsets) < 1).any():
        raise InvalidInputError(f"corpus {folder}", "offsets that do not part its codes", "rising offsets", next_step)
    check_codes(f"corpus {folder}", (int(corpus.codes.min()), int(corpus.codes.max())), codec.num_codes)
    frames = (corpus.offsets[1:] - corpus.offsets[:-1]).tolist()
    candidates = tuple(
        Candidate(row.id, row.text, row.voice, count / codec.frame_rate_hz, row.split)
        for row, count in zip(rows, frames, strict=True)
    )
    index_of = {candidate.id: index for index, candidate in enumerate(candidates)}
    return SpeechSource(candidates, lambda utterance_id: tuple(corpus.codes_of(index_of[utterance_id]).tolist()))
