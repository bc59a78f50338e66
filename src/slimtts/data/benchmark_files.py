"""Benchmarks of speech synthesis as they are published: sentences, each with the prompt whose voice it is said in.

Layouts: seed-tts-eval's meta.lst and F5-TTS's LibriSpeech-PC list (both read in their sources, 2026-11-21), and JSON
lines of our own. A row that cannot be used stops everything: a benchmark without its hard rows is another one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimtts.data.manifest import LONGEST_ID, LONGEST_ID_BYTES, MEND, audio_path, read_prompted_manifest
from slimtts.data.speech_source import FileRecording
from slimtts.data.spoken_text import check_spoken_text
from slimtts.errors import InvalidInputError
from slimtts.outside_files import numbered_lines

Sound = FileRecording | tuple[int, ...]  # a recording, or codes of the teacher's codec

_ID = re.compile(r"\w[\w.-]*")
_LIBRISPEECH_ID = re.compile(r"(\d+)-(\d+)-\d+")
# Where the list lies beside LibriSpeech, or in it, or in its test-clean.
_TEST_CLEAN = ("LibriSpeech/test-clean", "test-clean", ".")


@dataclass(frozen=True)
class BenchmarkRow:
    """A sentence to say in the voice of `prompt`; `original` is how a person said it, where that is known."""

    id: str
    text: str
    prompt_text: str
    prompt: Sound
    original: Sound | None
    voice: str


def read_benchmark(kind: str, path: Path, num_codes: int) -> list[BenchmarkRow]:
    """All rows of a benchmark in the file's order; the headers of all its recordings are sound.

    Raises:
        InvalidInputError: the file is missing or holds no rows, or a row or a recording of it is bad.
    """
    rows = _READERS[kind](path, num_codes)
    if not rows:
        raise InvalidInputError(
            str(path), "no rows", "at least one sentence", "correct evaluate_student.benchmark_source"
        )
    (name, count), *_ = Counter(row.id for row in rows).most_common(1)
    if count > 1:
        raise InvalidInputError(f"{path.name}, utterance '{name}'", f"{count} rows", "unique ids", MEND)
    for row in rows:
        for sound in (row.prompt, row.original):
            if isinstance(sound, FileRecording):
                sound.header()
    return rows


def rows_sha256(rows: Sequence[BenchmarkRow]) -> str:
    """Names a set of rows by ids, texts, sound and order, whichever codec is to encode it."""

    def mark(sound: Sound | None) -> object:
        return sound.sha256() if isinstance(sound, FileRecording) else sound

    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.id, row.text, row.prompt_text, mark(row.prompt), mark(row.original))).encode())
    return digest.hexdigest()


def read_seed_tts_eval(path: Path) -> list[BenchmarkRow]:
    """`id|prompt text|prompt wav|text`, paths below the list's folder; the original, if any, is the fifth field, or
    wavs/ID.wav as the set is unpacked.

    Raises:
        InvalidInputError: a line is bad.
    """
    rows = []
    for where, line in _lines(path):
        fields = [part.strip() for part in line.split("|")]
        if len(fields) not in (4, 5):
            raise InvalidInputError(where, f"{len(fields)} fields", "id|prompt text|prompt wav|text[|wav]", MEND)
        name, prompt_text, prompt, text = fields[:4]
        beside = path.parent / "wavs" / f"{name}.wav"
        original = audio_path(path.parent, fields[4], where) if len(fields) == 5 else beside
        recording = FileRecording(name, original) if len(fields) == 5 or original.is_file() else None
        prompt_recording = FileRecording(name, audio_path(path.parent, prompt, where))
        rows.append(BenchmarkRow(name, text, prompt_text, prompt_recording, recording, prompt_recording.path.stem))
        _check_row(where, rows[-1])
    return rows


def read_librispeech_pc(path: Path) -> list[BenchmarkRow]:
    """`prompt id, its seconds, its text, id, seconds, text` between tabs; recordings are SPEAKER/CHAPTER/ID.flac below
    the list's folder, or below LibriSpeech/test-clean or test-clean there.

    Raises:
        InvalidInputError: a line is bad.
    """
    roots = [path.parent / name for name in _TEST_CLEAN]
    rows = []
    for where, line in _lines(path):
        fields = [part.strip() for part in line.split("\t")]
        if len(fields) != 6:
            raise InvalidInputError(
                where, f"{len(fields)} fields", "prompt id, seconds, prompt text, id, seconds, text between tabs", MEND
            )
        prompt_name, _, prompt_text, name, _, text = fields
        for known in (prompt_name, name):
            if not _LIBRISPEECH_ID.fullmatch(known):
                raise InvalidInputError(where, f"'{known}'", "speaker-chapter-number", MEND)
        prompt, original = (_librispeech_file(roots, known) for known in (prompt_name, name))
        voice = prompt_name.split("-")[0]
        rows.append(
            BenchmarkRow(name, text, prompt_text, FileRecording(name, prompt), FileRecording(name, original), voice)
        )
        _check_row(where, rows[-1])
    return rows


def read_prompted(path: Path, num_codes: int) -> list[BenchmarkRow]:
    """Lines of `slimtts.data.manifest.PromptedEntry`, paths below the manifest's folder.

    Raises:
        InvalidInputError: a line is bad.
    """

    def sound(name: str, audio: str | None, codes: tuple[int, ...] | None) -> Sound | None:
        if audio is None:
            return codes
        return FileRecording(name, audio_path(path.parent, audio, f"{path.name}, utterance '{name}'"))

    rows = []
    for entry in read_prompted_manifest(path, num_codes):
        prompt = sound(entry.id, entry.prompt_audio, entry.prompt_codes) or ()
        original = sound(entry.id, entry.audio, entry.codes)
        rows.append(BenchmarkRow(entry.id, entry.text, entry.prompt_text, prompt, original, entry.voice or entry.id))
    return rows


def _librispeech_file(roots: Sequence[Path], name: str) -> Path:
    """The first that is there, else where it is expected first."""
    speaker, chapter, _ = name.split("-")
    paths = [root / speaker / chapter / f"{name}.flac" for root in roots]
    return next((path for path in paths if path.is_file()), paths[0])


def _lines(path: Path) -> list[tuple[str, str]]:
    """Where each line is, and the line; empty ones are left out."""
    allowed, next_step = "the benchmark's list, as UTF-8", "correct evaluate_student.benchmark_source"
    numbered = numbered_lines(path, str(path), allowed, next_step)
    return [(f"{path.name} line {number}", line.rstrip("\r")) for number, line in numbered]


def _check_row(where: str, row: BenchmarkRow) -> None:
    if not _ID.fullmatch(row.id) or len(row.id) > LONGEST_ID or len(row.id.encode()) > LONGEST_ID_BYTES:
        raise InvalidInputError(where, f"id '{row.id[:80]}'", f"letters, digits, _ . -, at most {LONGEST_ID}", MEND)
    if not row.voice.isprintable():
        raise InvalidInputError(where, f"voice {row.voice[:80]!r}", "printable characters", MEND)
    check_spoken_text(row.text, f"{where}, text")
    check_spoken_text(row.prompt_text, f"{where}, prompt text")


_READERS: dict[str, Callable[[Path, int], list[BenchmarkRow]]] = {
    "seed-tts-eval": lambda path, _: read_seed_tts_eval(path),
    "librispeech-pc": lambda path, _: read_librispeech_pc(path),
    "manifest": read_prompted,
}
