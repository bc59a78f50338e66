"""Which numbers, tags and files of each stage people compare, under the names that MLflow shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimtts.params import load_params
from slimtts.results import (
    AgreementReport,
    DistillReport,
    EvaluationReport,
    LayerScores,
    PrunePlan,
    Release,
    SubsetReport,
)
from slimtts.workspace import Workspace

AUDIO_FILES = 8  # a taste for the run's page; all of them stay in the workspace
STUDENT_HASH = "student_sha256"  # tag of runs, logged models and versions: all name the student by one hash
HEADLINE = "compare"  # prefix of the few metrics that answer which student is best; MLflow gives it a section of charts


@dataclass(frozen=True)
class UsedData:
    """Utterances that a run used, and for what; sets of equal name and hash are equal."""

    name: str
    sha256: str
    purpose: str
    utterances: int
    source: str


@dataclass(frozen=True)
class StageRecord:
    """What one stage tells: metrics, tags, files with the folder that they are shown in, the data it used, and a
    table for the top of the run's page."""

    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[tuple[Path, str]] = field(default_factory=list)
    data: list[UsedData] = field(default_factory=list)
    note: str = ""


def stage_record(stage: str, workspace: Workspace) -> StageRecord:
    """The record of a finished stage.

    Raises:
        InvalidInputError: its result is missing or damaged.
    """
    return _READERS[stage](workspace)


def numbers(prefix: str, value: Any) -> dict[str, float]:
    """Flat metrics of nested results: `{"wer": {"value": v, "low": l, "high": h}}` -> wer, wer.low, wer.high.

    What is not a finite number is left out.
    """
    if isinstance(value, Mapping):
        interval = value.keys() == {"value", "low", "high"}
        parts = [
            numbers(prefix if interval and key == "value" else f"{prefix}.{key}".lstrip("."), inner)
            for key, inner in value.items()
        ]
        return {key: number for part in parts for key, number in part.items()}
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return {}
    return {prefix: float(value)}


def student_sha256(report: EvaluationReport) -> str:
    """The student's hash, which its version and its card bear too; "" where an old evaluation does not name it."""
    return report.weights_sha256.get("student", "")


def evaluation_numbers(report: EvaluationReport) -> dict[str, float]:
    """`student.wer_corpus`, `gap.student_teacher.wer_points`, `speedup.student.lm`, ..."""
    found = numbers("", report.model_dump()["systems"])
    for gap in report.gaps:
        found |= numbers(f"gap.{gap.system}_{gap.baseline}", gap.model_dump())
    teacher = report.systems.get("teacher")
    for name, system in report.systems.items():
        if teacher and name != "teacher":
            found[f"speedup.{name}.lm"] = teacher.speed.lm_rtf / system.speed.lm_rtf
            found[f"speedup.{name}.end_to_end"] = teacher.speed.end_to_end_rtf / system.speed.end_to_end_rtf
    for group in report.groups:  # group.hard.repetition.student.wer_corpus
        kept = group.model_dump(include={"wer_corpus", "wer_mean", "no_end_rate", "failures", "similarity"})
        found |= numbers(f"group.{group.group.replace('/', '.')}.{group.system}", kept)
    return found | numbers("reference_wer", report.reference_wer)


def headline_numbers(report: EvaluationReport) -> dict[str, float]:
    """The student's size, errors, voice, naturalness and price, in the units that people read, as `compare/...`.

    Rounded to four decimals for the columns of MLflow; the exact values are there under the systems' names.
    """
    student, teacher = report.systems["student"], report.systems["teacher"]
    gap = report.gap("student", "teacher")
    found: dict[str, float] = {
        "layers": student.num_layers,
        "depth_percent": 100 * student.num_layers / teacher.num_layers,
        "parameters_millions": student.parameters / 1e6,
        "parameters_percent": 100 * student.parameters / teacher.parameters,
        "wer_percent": 100 * student.wer_corpus.value,
        "wer_percent.low": 100 * student.wer_corpus.low,
        "wer_percent.high": 100 * student.wer_corpus.high,
        "wer_gap_points": gap.wer_points.value,
        "wer_gap_points.low": gap.wer_points.low,
        "wer_gap_points.high": gap.wer_points.high,
        "wer_gap_p_value": gap.p_value,
        "similarity": student.similarity.value,
        "similarity_gap": gap.similarity.value,
        "mos": student.mos.value,
        "mos_gap": gap.mos.value,
        "no_end_percent": 100 * student.no_end_rate,
        "lm_rtf": student.speed.lm_rtf,
        "lm_speedup": teacher.speed.lm_rtf / student.speed.lm_rtf,
        "end_to_end_rtf": student.speed.end_to_end_rtf,
        "memory_mb": student.speed.peak_memory_mb,
    }
    newer = {"weights_mb": student.weight_mb, "first_audio_s": student.speed.first_audio_p50_s}
    found |= {name: value for name, value in newer.items() if value is not None}
    return {f"{HEADLINE}/{name}": round(float(value), 4) for name, value in found.items() if math.isfinite(value)}


def _agreement_numbers(workspace: Workspace) -> dict[str, float]:
    """`student.agreement.top1`, ...; nothing where it was not measured."""
    path = workspace.evaluation / "agreement.json"
    if not path.is_file():
        return {}
    systems = AgreementReport.read(path).systems
    found = numbers("", {f"{name}.agreement": system.model_dump(exclude={"bins"}) for name, system in systems.items()})
    if "student" in systems:
        found[f"{HEADLINE}/agreement_percent"] = 100 * systems["student"].top1.value
    return found


def _subset_data(workspace: Workspace) -> StageRecord:
    report, source = SubsetReport.read(workspace.data / "report.json"), load_params(workspace.params).subset_data.source
    purposes = {"train": "training", "selection": "choosing layers", "test": "testing"}
    data = [
        UsedData(f"{name} split", report.data_sha256, purpose, report.splits[name].utterances, source)
        for name, purpose in purposes.items()
        if name in report.splits
    ]
    tags = {"data_sha256": report.data_sha256}
    return StageRecord(numbers("subset", report.model_dump()), tags, [(workspace.params, "")], data)


def _score_layers(workspace: Workspace) -> StageRecord:
    scores = LayerScores.read(workspace.scores / "scores.json")
    metrics = {f"importance.layer_{layer.layer:02d}": layer.importance for layer in scores.layers}
    tags = {"teacher_sha256": scores.teacher_sha256, "drop_order": str(scores.drop_order)}
    return StageRecord(metrics, tags, _files("scores", sorted(workspace.scores.glob("scores.*"))))


def _prune_layers(workspace: Workspace) -> StageRecord:
    plan = PrunePlan.read(workspace.pruned / "plan.json")
    metrics = {
        "student.layers": float(len(plan.retained)),
        "student.parameter_share": plan.student_parameters / plan.teacher_parameters,
    }
    return StageRecord(metrics, {"retained_layers": str(plan.retained)}, [(workspace.pruned / "plan.json", "pruned")])


def _distill_student(workspace: Workspace) -> StageRecord:
    report = DistillReport.read(workspace.student / "report.json")
    return StageRecord(
        numbers("distill", report.model_dump()),
        {"preset": report.preset, "device": report.device},
    )


def _evaluate_student(workspace: Workspace) -> StageRecord:
    report = EvaluationReport.read(workspace.evaluation / "evaluation.json")
    student, teacher = report.systems["student"], report.systems["teacher"]
    named = (
        "asr", "normalizer", "test_set_sha256", "benchmark", "language", "metric", "similarity_predictor", "machine",
    )  # fmt: skip
    tags = {name: str(getattr(report, name)) for name in named}
    tags |= {STUDENT_HASH: sha256} if (sha256 := student_sha256(report)) else {}
    tags |= {"mos_predictor": student.mos_predictor, "depth": f"{student.num_layers} of {teacher.num_layers}"}
    audio = sorted(workspace.evaluation.glob("audio/**/*.wav"))[:AUDIO_FILES]
    names = ("evaluation.json", "table.md", "utterances.jsonl", "agreement.json")
    tables = [path for name in names if (path := workspace.evaluation / name).is_file()]
    metrics = evaluation_numbers(report) | headline_numbers(report) | _agreement_numbers(workspace)
    heard = UsedData("test sentences", report.test_set_sha256, "testing", report.utterances, report.benchmark)
    table = workspace.evaluation / "table.md"
    note = table.read_text() if table.is_file() else ""
    return StageRecord(metrics, tags, _files("evaluation", tables) + _files("audio", audio), [heard], note)


def _register_model(workspace: Workspace) -> StageRecord:
    release = Release.read(workspace.release / "release.json")
    tags = {"verdict": release.verdict.decision, "verdict.reasons": "; ".join(release.verdict.reasons) or "none"}
    return StageRecord({}, tags, _files("release", sorted(workspace.release.glob("card.md"))))


def _files(folder: str, paths: list[Path]) -> list[tuple[Path, str]]:
    return [(path, folder) for path in paths]


_READERS = {
    "subset_data": _subset_data,
    "score_layers": _score_layers,
    "prune_layers": _prune_layers,
    "distill_student": _distill_student,
    "evaluate_student": _evaluate_student,
    "register_model": _register_model,
}
