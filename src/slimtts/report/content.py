"""What the listening page tells of a run: systems, sentences, and of each cell its sound, words and numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, ValidationError

from slimtts.data.markup import without_marks
from slimtts.errors import InvalidInputError
from slimtts.evaluation.normalization import Normalizer
from slimtts.params import Params, load_params
from slimtts.report.words import MarkedWord, mark_words, word_error_rate
from slimtts.results import EvaluationReport, KeptAudio, KeptSentence, PrunePlan, Release
from slimtts.workspace import Workspace

OURS = "student"  # and what is made of it, as student-int8
RECORDED = {
    "reference": ("recording", "as it was recorded"),
    "original": ("codec", "the recording, through the codec and back"),
}
ABOUT = {
    "teacher": "the whole model",
    "pruned": "layers removed, not healed",
    "student": "ours: layers removed, healed",
    "control": "the teacher, trained as long as the student",
}


@dataclass(frozen=True)
class Column:
    """One voice of the comparison: a system, or the recording it should sound like."""

    name: str
    label: str
    about: str
    ours: bool


@dataclass(frozen=True)
class Cell:
    """One sentence in one column; None for what was not measured. `sound` is a path below the evaluation's audio/."""

    sound: str | None
    words: list[MarkedWord] | None = None
    wer: float | None = None
    similarity: float | None = None
    mos: float | None = None
    ended: bool = True


@dataclass(frozen=True)
class Sentence:
    """What was to be said, in whose voice, and every column's attempt; `chosen` as in `KeptSentence`."""

    id: str
    text: str
    voice: str
    chosen: str
    prompt_text: str
    prompt: str | None
    cells: dict[str, Cell]


@dataclass(frozen=True)
class RunFacts:
    """The results that the top of the page is made of; `release` only once the student was judged."""

    name: str
    params: Params
    plan: PrunePlan
    evaluation: EvaluationReport
    release: Release | None


@dataclass(frozen=True)
class Content:
    """Everything that the page shows, but pixels and sound."""

    workspace: Workspace
    facts: RunFacts
    columns: list[Column]
    sentences: list[Sentence] = field(default_factory=list)

    @property
    def audio(self) -> Path:
        """What the sounds' paths are below of."""
        return self.workspace.evaluation / "audio"

    def blind_ids(self, pair: Sequence[str]) -> list[str]:
        """Sentences that a blind comparison of two columns asks about: random ones that both said.

        Those that the student got most wrong would be unfair to it.
        """
        return [
            sentence.id
            for sentence in self.sentences
            if sentence.chosen == "random" and all(sentence.cells[name].sound for name in pair)
        ]


class _Errors(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hits: int
    substitutions: int
    deletions: int
    insertions: int


class _SpokenRow(BaseModel):
    """A line of utterances.jsonl, of which a later version may tell more."""

    system: str
    id: str
    text: str
    transcript: str
    errors: _Errors
    ended: bool
    similarity: float
    mos: float | None


Rows = dict[tuple[str, str], _SpokenRow]


def read_content(run: Path) -> Content:
    """The content of a finished run's page.

    Raises:
        InvalidInputError: the run was not evaluated, or a result is damaged.
    """
    workspace = Workspace(run)
    if not workspace.evaluation.is_dir():
        raise InvalidInputError(
            f"run {run}", "no evaluation", "a run whose evaluate_student has finished", "finish the run first"
        )
    release = workspace.release / "release.json"
    facts = RunFacts(
        run.resolve().name,
        load_params(workspace.params),
        PrunePlan.read(workspace.pruned / "plan.json"),
        EvaluationReport.read(workspace.evaluation / "evaluation.json"),
        Release.read(release) if release.exists() else None,
    )
    audio = workspace.evaluation / "audio"
    rows = _read_rows(workspace.evaluation / "utterances.jsonl")
    columns = [
        Column(name, label, about, ours=False) for name, (label, about) in RECORDED.items() if (audio / name).is_dir()
    ]
    columns += [Column(name, name, _about(name), name.startswith(OURS)) for name in _ordered(facts.evaluation.systems)]
    sentences = []
    for kept in KeptAudio.read(workspace.evaluation / "kept.json").sentences:
        cells = {
            column.name: _cell(kept, column.name, _sound(audio, column.name, kept.id), rows, facts)
            for column in columns
        }
        prompt = _sound(audio, "prompt", kept.id)
        sentences.append(Sentence(kept.id, kept.text, kept.voice, kept.chosen, kept.prompt_text, prompt, cells))
    return Content(workspace, facts, columns, sentences)


def _cell(kept: KeptSentence, column: str, sound: str | None, rows: Rows, facts: RunFacts) -> Cell:
    row = rows.get((column, kept.id))
    transcript = row.transcript if row else kept.original_transcript if column == "original" else None
    if transcript is None:
        return Cell(sound)
    report, family = facts.evaluation, facts.params.teacher.family
    expected, transcript = (without_marks(text, family) for text in (kept.text, transcript))
    words = mark_words(expected, transcript, cast(Normalizer, report.normalizer), report.metric)
    wer = word_error_rate(words)
    if row is None:
        return Cell(sound, words, wer)
    return Cell(sound, words, wer, _finite(row.similarity), _finite(row.mos), row.ended)


def _read_rows(path: Path) -> Rows:
    rows: Rows = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            where = f"{path} line {number}"
            row = _SpokenRow.model_validate_json(line)
            rows[row.system, row.id] = row
    except OSError as error:
        raise InvalidInputError(str(path), error.strerror, "what every system said", "evaluate again") from None
    except ValidationError as error:
        first = error.errors()[0]
        observed = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
        raise InvalidInputError(where, observed, "a sentence that a system said", "evaluate again") from None
    return rows


def _ordered(systems: Mapping[str, object]) -> list[str]:
    """Teacher, pruned, student and its variants, then the rest, the control last."""
    places = {"teacher": 0, "pruned": 1, "control": 4}
    return sorted(systems, key=lambda name: places.get(name, 2 if name.startswith(OURS) else 3))


def _about(name: str) -> str:
    return ABOUT.get(name, "ours, changed further" if name.startswith(OURS) else "")


def _sound(audio: Path, column: str, sentence: str) -> str | None:
    path = audio / column / f"{sentence}.wav"
    return f"{column}/{sentence}.wav" if path.is_file() and path.resolve().is_relative_to(audio.resolve()) else None


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def as_json(value: object) -> str:
    """JSON for a data block inside HTML: nothing in it can end the block."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
