"""Corpora that are folders of WAV files with texts beside them: LJSpeech and LibriTTS as they are published.

LJSpeech: `metadata.csv` with `id|text|normalised text`, `wavs/ID.wav`, one reader. LibriTTS (one subset, such as
train-clean-100): `SPEAKER/CHAPTER/ID.normalized.txt` beside `ID.wav`; the speaker is the voice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from slimtts.data.manifest import AudioEntry, audio_entry, audio_path
from slimtts.errors import InvalidInputError
from slimtts.outside_files import numbered_lines, read_text

LJSPEECH_VOICE = "LJ"
NORMALIZED = ".normalized.txt"
MAX_TEXT_BYTES = 1 << 16  # of one sentence
ALLOWED, NEXT = "a readable UTF-8 file", "write it again as UTF-8"


def is_ljspeech(folder: Path) -> bool:
    """Has the folder LJSpeech's two parts?"""
    return (folder / "metadata.csv").is_file() and (folder / "wavs").is_dir()


def is_libritts(folder: Path) -> bool:
    """Has any speaker a chapter with a normalised text?"""
    return next(_normalized_texts(folder), None) is not None


def read_ljspeech(folder: Path) -> list[AudioEntry]:
    """One entry a line of metadata.csv; the normalised text where there is one.

    Raises:
        InvalidInputError: a line is no row of LJSpeech, or its id or text is bad.
    """
    entries = []
    path = folder / "metadata.csv"
    for number, line in numbered_lines(path, str(path), ALLOWED, NEXT):
        cells = line.removesuffix("\r").split("|")  # never quoted
        where = f"metadata.csv line {number}"
        if len(cells) not in (2, 3):
            raise InvalidInputError(
                f"{where}, utterance '{cells[0]}'", f"{len(cells)} fields", "id|text|normalised text", "mend this line"
            )
        text = cells[-1].strip() or cells[1].strip()
        values = {"id": cells[0], "text": text, "voice": LJSPEECH_VOICE, "audio": f"wavs/{cells[0]}.wav"}
        entries.append(audio_entry(values, where))
    return entries


def read_libritts(folder: Path) -> list[AudioEntry]:
    """One entry a normalised text, in the order of paths.

    Raises:
        InvalidInputError: a text is not UTF-8, or an id or a text is bad.
    """
    entries = []
    for path in sorted(_normalized_texts(folder)):
        name = path.name.removesuffix(NORMALIZED)
        speaker, chapter = path.parts[-3:-1]
        where = f"{speaker}/{chapter}/{path.name}"
        values = {
            "id": name,
            "text": read_text(audio_path(folder, where, where), where, ALLOWED, NEXT, MAX_TEXT_BYTES).strip(),
            "voice": speaker,
            "audio": f"{speaker}/{chapter}/{name}.wav",
        }
        entries.append(audio_entry(values, where))
    return entries


def _normalized_texts(folder: Path) -> Iterator[Path]:
    """Without what other systems put beside every file, as `._ID.normalized.txt` on macOS."""
    return (path for path in folder.glob(f"*/*/*{NORMALIZED}") if not path.name.startswith("."))
