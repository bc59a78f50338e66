"""Corpora that are folders of WAV files with texts beside them: LJSpeech and LibriTTS as they are published.

LJSpeech: `metadata.csv` with `id|text|normalised text`, `wavs/ID.wav`, one reader. LibriTTS (one subset, such as
train-clean-100): `SPEAKER/CHAPTER/ID.normalized.txt` beside `ID.wav`; the speaker is the voice.
"""

from __future__ import annotations

from pathlib import Path

from slimtts.data.manifest import AudioEntry, audio_entry, audio_path
from slimtts.errors import InvalidInputError

LJSPEECH_VOICE = "LJ"
NORMALIZED = ".normalized.txt"


def is_ljspeech(folder: Path) -> bool:
    """Has the folder LJSpeech's two parts?"""
    return (folder / "metadata.csv").is_file() and (folder / "wavs").is_dir()


def is_libritts(folder: Path) -> bool:
    """Has any speaker a chapter with a normalised text?"""
    return next(folder.glob(f"*/*/*{NORMALIZED}"), None) is not None


def read_ljspeech(folder: Path) -> list[AudioEntry]:
    """One entry a line of metadata.csv; the normalised text where there is one.

    Raises:
        InvalidInputError: a line is no row of LJSpeech, or its id or text is bad.
    """
    entries = []
    for number, line in enumerate(_text(folder / "metadata.csv").split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        cells = line.split("|")  # never quoted
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
    for path in sorted(folder.glob(f"*/*/*{NORMALIZED}")):
        name = path.name.removesuffix(NORMALIZED)
        speaker, chapter = path.parts[-3:-1]
        where = f"{speaker}/{chapter}/{path.name}"
        values = {
            "id": name,
            "text": _text(audio_path(folder, where, where)).strip(),
            "voice": speaker,
            "audio": f"{speaker}/{chapter}/{name}.wav",
        }
        entries.append(audio_entry(values, where))
    return entries


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(str(path), error, "a readable UTF-8 file", "write it again as UTF-8") from None
