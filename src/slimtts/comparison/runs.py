"""One finished run as others compare with it: its plan, its evaluation, and every sentence of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError
from slimtts.evaluation.protocols import SHARED
from slimtts.evaluation.word_errors import WordErrors
from slimtts.results import EvaluationReport, PrunePlan, SystemResult
from slimtts.workspace import Workspace
from slimtts.yaml_files import read_yaml

MOST_WORDS = 1_000_000  # of a sentence
STUDENT = "student"  # of a run; variants of it are named student-...


@dataclass(frozen=True)
class Sentence:
    """What one system made of one sentence of the test set. `mos` is None where it was not rated."""

    id: str
    errors: WordErrors
    ended: bool
    seconds: float
    similarity: float
    mos: float | None


@dataclass(frozen=True)
class FinishedRun:
    """What a run leaves for comparisons; `knobs` are its parameters as `section.knob`."""

    name: str
    plan: PrunePlan
    report: EvaluationReport
    sentences: Mapping[str, Sequence[Sentence]]
    knobs: Mapping[str, str]

    @property
    def students(self) -> dict[str, SystemResult]:
        """The student and its variants, by the name of the system."""
        return {
            name: system
            for name, system in self.report.systems.items()
            if name == STUDENT or name.startswith(f"{STUDENT}-")
        }

    @property
    def basis(self) -> dict[str, str]:
        """What its numbers rest on."""
        report = self.report
        named = {name: str(getattr(report, name)) for name in SHARED}
        return named | {"mos_predictor": report.systems[STUDENT].mos_predictor, "teacher": self.plan.teacher_sha256}


def read_run(folder: Path, name: str = "", with_sentences: bool = True) -> FinishedRun:
    """The run in a workspace, by its folder's name if it is given none; without its sentences it is only drawn.

    Raises:
        InvalidInputError: the run has not been evaluated, or a file is damaged.
    """
    workspace = Workspace(folder)
    report = EvaluationReport.read(workspace.evaluation / "evaluation.json")
    if STUDENT not in report.systems:
        raise InvalidInputError(
            str(folder), f"an evaluation of {', '.join(report.systems) or 'nothing'}", "one of a student",
            "run evaluate_student again",
        )  # fmt: skip
    return FinishedRun(
        name or folder.resolve().name,
        PrunePlan.read(workspace.pruned / "plan.json"),
        report,
        read_sentences(workspace.evaluation / "utterances.jsonl") if with_sentences else {},
        flat_knobs(read_yaml(workspace.params) or {}) if workspace.params.is_file() else {},
    )


def flat_knobs(params: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{"prune_layers": {"keep_layers": 6}} -> {"prune_layers.keep_layers": "6"}."""
    sections = {section: part for section, part in params.items() if isinstance(part, Mapping)}
    return {f"{section}.{knob}": _plain(value) for section, part in sections.items() for knob, value in part.items()}


def _plain(value: Any) -> str:
    """As people read it: of a section within a section only what is set."""
    return str({k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value)


def read_sentences(path: Path) -> dict[str, list[Sentence]]:
    """What each system said, in the order of the test set.

    Raises:
        InvalidInputError: no such file, or a line that evaluate_student did not write.
    """
    systems: dict[str, list[Sentence]] = {}
    what, remedy = "the sentences of an evaluation, a line each", "run evaluate_student again"
    if not path.is_file():
        raise InvalidInputError(str(path), "no such file", what, remedy)
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            system, sentence = _sentence(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(f"{path}, line {number}", f"{type(error).__name__} {error}", what, remedy) from None
        systems.setdefault(system, []).append(sentence)
    return systems


def _sentence(row: Mapping[str, Any]) -> tuple[str, Sentence]:
    errors = {name: row["errors"][name] for name in ("hits", "substitutions", "deletions", "insertions")}
    if not all(type(count) is int and 0 <= count <= MOST_WORDS for count in errors.values()):
        raise ValueError(f"word counts {errors}")
    mos = None if row["mos"] is None else _finite(row["mos"])
    numbers = (bool(row["ended"]), _finite(row["seconds"]), _finite(row["similarity"]), mos)
    return str(row["system"]), Sentence(str(row["id"]), WordErrors(**errors), *numbers)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number}, which ranks nothing")
    return number
