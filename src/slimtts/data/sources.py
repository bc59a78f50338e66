"""Where utterances come from: a token corpus, or a manifest of audio files or codes.

Candidates are cheap to list; codes are computed only for those that were chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import torch

from slimtts.data.audio import read_audio, read_header, resample
from slimtts.data.manifest import AudioEntry, audio_path, check_codes, read_audio_manifest
from slimtts.data.splits import Candidate
from slimtts.data.token_corpus import load_token_corpus
from slimtts.errors import InvalidInputError


@dataclass(frozen=True)
class CodecFacts:
    """What a source needs to know of the teacher's codec; `encode` maps float [1, N] to int codes [1, F]."""

    sample_rate_hz: int
    frame_rate_hz: float
    num_codes: int
    encode: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SpeechSource:
    """All utterances, and the codes of one of them by id."""

    candidates: tuple[Candidate, ...]
    codes_of: Callable[[str], tuple[int, ...]]


def token_corpus_source(folder: Path, codec: CodecFacts) -> SpeechSource:
    """A folder that `slimtts.data.token_corpus` reads.

    Raises:
        InvalidInputError: files are missing or damaged, rows and codes disagree, or a code is unknown.
    """
    next_step = "restore the folder from where it was published"
    try:
        corpus = load_token_corpus(folder)
        rows = [(row["id"], row["text"], row["voice"], row.get("split")) for row in corpus.rows]
    except (OSError, BadZipFile, json.JSONDecodeError, KeyError) as error:
        raise InvalidInputError(f"corpus {folder}", repr(error), "a complete token corpus", next_step) from None
    if len(rows) + 1 != len(corpus.offsets) or not rows:
        raise InvalidInputError(
            f"corpus {folder}", f"{len(rows)} rows and {len(corpus.offsets) - 1} utterances", "as many", next_step
        )
    check_codes(f"corpus {folder}", (int(corpus.codes.min()), int(corpus.codes.max())), codec.num_codes)
    frames = (corpus.offsets[1:] - corpus.offsets[:-1]).tolist()
    candidates = tuple(
        Candidate(utterance_id, text, voice, count / codec.frame_rate_hz, split)
        for (utterance_id, text, voice, split), count in zip(rows, frames, strict=True)
    )
    index_of = {candidate.id: index for index, candidate in enumerate(candidates)}
    return SpeechSource(candidates, lambda utterance_id: tuple(corpus.codes_of(index_of[utterance_id]).tolist()))


def manifest_source(manifest: Path, codec: CodecFacts) -> SpeechSource:
    """A manifest.jsonl; every audio file's header is checked now, its samples when its codes are asked for.

    Raises:
        InvalidInputError: a row or an audio file is bad; `codes_of` raises it for samples that cannot be used.
    """
    entries = {entry.id: entry for entry in read_audio_manifest(manifest, codec.num_codes)}
    if not entries:
        raise InvalidInputError(str(manifest), "no rows", "at least one utterance", "fill the manifest")

    def located(entry: AudioEntry) -> Path:
        return audio_path(manifest.parent, entry.audio or "", f"{manifest.name}, utterance '{entry.id}'")

    def duration_s(entry: AudioEntry) -> float:
        if entry.codes is not None:
            return len(entry.codes) / codec.frame_rate_hz
        return read_header(located(entry), entry.sample_rate_hz, entry.id).duration_s

    def codes_of(utterance_id: str) -> tuple[int, ...]:
        entry = entries[utterance_id]
        if entry.codes is not None:
            return entry.codes
        wave, rate_hz = read_audio(located(entry), entry.sample_rate_hz, entry.id)
        return tuple(codec.encode(resample(wave, rate_hz, codec.sample_rate_hz).unsqueeze(0))[0].tolist())

    candidates = tuple(
        Candidate(entry.id, entry.text, entry.voice, duration_s(entry), entry.split) for entry in entries.values()
    )
    return SpeechSource(candidates, codes_of)
