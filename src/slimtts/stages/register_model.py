"""Stage register_model: assembles what the registry needs: the model, its card, its lineage, and the gate's verdict."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import yaml

from slimtts.evaluation.word_meter import name_of_recognizer
from slimtts.params import Params
from slimtts.promotion import judge
from slimtts.results import (
    EvaluationReport,
    Lineage,
    ModelOrigin,
    PrunePlan,
    Release,
    SubsetReport,
    VoicePrompt,
    Voices,
)
from slimtts.stages.model_card import front_matter, model_card
from slimtts.stages.voices import speaking_tasks
from slimtts.storage import atomic_path
from slimtts.teachers.checkpoint import hash_weights
from slimtts.teachers.model_folder import ORIGIN, VOICES
from slimtts.workspace import STAGES, Workspace

logger = logging.getLogger(__name__)


def headline_metrics(report: EvaluationReport) -> dict[str, float]:
    """The numbers a registry page should show."""
    student, teacher = report.systems["student"], report.systems["teacher"]
    gap = report.gap("student", "teacher")
    judges = {"reference_wer": report.reference_wer, "other_voice_similarity": report.other_voice_similarity}
    return {
        "student_wer": student.wer_corpus.value,
        "teacher_wer": teacher.wer_corpus.value,
        "wer_gap_points": gap.wer_points.value,
        "wer_gap_points_upper": gap.wer_points.high,
        "similarity_gap": gap.similarity.value,
        "mos_gap": gap.mos.value,
        "no_end_rate": student.no_end_rate,
        "lm_speedup": teacher.speed.lm_rtf / student.speed.lm_rtf,
        "parameter_share": student.parameters / teacher.parameters,
        "utterances": float(report.utterances),
    } | {name: value for name, value in judges.items() if value is not None}


def evaluated_voices(workspace: Workspace, utterances: int) -> Voices:
    """The prompt of each voice's first sentence among the first `utterances` of the test split."""
    voices: dict[str, VoicePrompt] = {}
    for task in speaking_tasks(workspace, "test", utterances):
        prompt = task.prompt
        voices.setdefault(prompt.voice, VoicePrompt(text=prompt.text, codes=list(prompt.codes)))
    return Voices(voices=voices)


def dvc_outputs(lock: Path) -> dict[str, str]:
    """Path -> hash of what the stages before the release put out, without their progress; empty without a dvc.lock."""
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    outputs = [out for stage in STAGES[:-1] for out in stages.get(stage, {}).get("outs", [])]
    return {out["path"]: out["md5"] for out in outputs if not out["path"].startswith("progress/")}


def dvc_revision(outputs: dict[str, str]) -> str:
    """One hash of all outputs; "none" without any."""
    text = json.dumps(outputs, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if outputs else "none"


def register_model(params: Params, workspace: Workspace) -> Release:
    """Writes release.json, card.md and model/, with README.md and voices.json, below `workspace.release`.

    The orchestrator passes the code's revision as SLIMTTS_GIT_SHA, and the run's dvc.lock lies in the workspace.
    """
    report = EvaluationReport.read(workspace.evaluation / "evaluation.json")
    plan = PrunePlan.read(workspace.pruned / "plan.json")
    data = SubsetReport.read(workspace.data / "report.json")
    origin = ModelOrigin.read(workspace.student / "student" / ORIGIN)
    outputs = dvc_outputs(workspace.root / "dvc.lock")
    lineage = Lineage(
        git_sha=os.environ.get("SLIMTTS_GIT_SHA", "unknown"),
        data_sha256=data.data_sha256,
        teacher_sha256=plan.teacher_sha256,
        student_sha256=hash_weights(workspace.student / "student"),
        dvc_revision=dvc_revision(outputs),
        dvc_outputs=outputs,
        asr=name_of_recognizer(params.recogniser),
        normalizer=params.recogniser.normalizer,
        retained=plan.retained,
        seed=params.distill_student.seed,
        preset=params.distill_student.preset,
        tied_layers=plan.tied_layers,
    )
    release = Release(
        model_name=params.register_model.model_name,
        lineage=lineage,
        verdict=judge(report, params.register_model, lineage),
        metrics=headline_metrics(report),
    )
    with atomic_path(workspace.release) as out:
        out.mkdir()
        shutil.copytree(workspace.student / "student", out / "model")
        evaluated_voices(workspace, report.utterances).write(out / "model" / VOICES)
        card = model_card(release, report, data, origin)
        (out / "card.md").write_text(card)
        (out / "model" / "README.md").write_text(front_matter(origin) + card)
        release.write(out / "release.json")
    logger.info(f"verdict {release.verdict.decision}: {'; '.join(release.verdict.reasons) or 'all limits kept'}")
    return release
