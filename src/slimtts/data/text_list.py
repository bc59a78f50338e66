"""Texts from a person's file that the teacher is to speak: a sentence a line, or voice, tab, sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from slimtts.data.splits import Candidate, seeded_rank
from slimtts.data.spoken_text import check_spoken_text
from slimtts.data.texts import text_key
from slimtts.errors import InvalidInputError
from slimtts.outside_files import numbered_lines


def read_text_list(
    path: Path, voices: Collection[str], spoken_anyway: Iterable[Candidate], held_out: Iterable[Candidate], seed: int
) -> tuple[list[Candidate], Counter[str]]:
    """The lines to speak, each in its voice or in one drawn by seed and words; and the dropped ones by reason.

    Dropped: words of a held-out sentence, and what the same voice says already.

    Raises:
        InvalidInputError: the file or a line is bad, a voice is not among `voices`, or an id is taken.
    """
    spoken_anyway = list(spoken_anyway)
    taken = {row.id for row in spoken_anyway}
    said = {(row.voice, text_key(row.text)) for row in spoken_anyway}
    held_out_texts = {text_key(row.text) for row in held_out}
    drawable = sorted(voices)
    rows: list[Candidate] = []
    dropped: Counter[str] = Counter()
    for number, line in _numbered(path):
        where = f"{path.name} line {number}"
        voice, tab, text = (part.strip(" \r") for part in line.partition("\t"))
        if not tab:
            voice, text = "", voice
        elif not voice:
            raise InvalidInputError(where, "a tab without a voice before it", "voice, tab, sentence", "mend this line")
        key = text_key(text)
        check_spoken_text(text, where)
        voice = voice or drawable[int.from_bytes(seeded_rank(seed, f"voice/{key}"), "big") % len(drawable)]
        if voice not in voices:
            shown = ", ".join(drawable[:8]) + (" ..." if len(drawable) > 8 else "")
            raise InvalidInputError(where, f"voice '{voice}'", f"voices of the train split: {shown}", "correct it")
        utterance_id = f"text-list-{number:06d}"
        if utterance_id in taken:
            raise InvalidInputError(where, f"id '{utterance_id}' is taken", "an id of its own", "rename the utterance")
        if key in held_out_texts:
            dropped["text_list_held_out"] += 1
        elif (voice, key) in said:
            dropped["text_list_repeated"] += 1
        else:
            said.add((voice, key))
            rows.append(Candidate(utterance_id, text, voice, 0.0))
    return rows, dropped


def read_lines(path: Path, what: str = "subset_data.text_list") -> list[str]:
    """Lines of the person's file that the knob `what` names, without blank ones.

    Raises:
        InvalidInputError: it cannot be read, or is not UTF-8.
    """
    return [line for _, line in _numbered(path, what)]


def _numbered(path: Path, what: str = "subset_data.text_list") -> Iterator[tuple[int, str]]:
    return numbered_lines(path, f"{what} {path}", "a readable UTF-8 file", "correct the path or the file")
