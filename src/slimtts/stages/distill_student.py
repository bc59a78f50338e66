"""Stage distill_student: heals the pruned model, and trains the teacher on for the same budget as a control."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slimtts.data.manifest import read_utterances
from slimtts.decoding.guidance import Guidance
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.on_policy import OnPolicyBatches
from slimtts.distill.training import TrainingJob, pick_device, train
from slimtts.params import DistillStudentParams, Params
from slimtts.results import DistillReport, PrunePlan, SubsetReport
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.checkpoint import hash_weights, load_language_model
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace


def fingerprint(params: DistillStudentParams, *parts: str) -> str:
    """Names a training: equal only when parameters, data, teacher and plan are equal."""
    kept = params.model_dump(exclude={"checkpoint_every_steps", "device", "control"})
    return hashlib.sha256(repr((sorted(kept.items()), parts)).encode()).hexdigest()[:16]


def own_progress(folder: Path, wanted: str) -> Path:
    """The folder of this fingerprint below `folder`; those of other parameters are removed."""
    for other in folder.glob("*"):
        if other.name != wanted:
            shutil.rmtree(other)
    return folder / wanted


def save_model(model: Any, teacher: Teacher, out: Path) -> None:
    """A standard checkpoint in fp16 with the tokenizer beside it."""
    model.to("cpu").half().save_pretrained(out)
    teacher.tokenizer.save_pretrained(out)


def distill_student(params: Params, workspace: Workspace) -> DistillReport:
    """Writes student/, control/, curves and report.json below `workspace.student`."""
    knobs = params.distill_student
    device = pick_device(knobs.device)
    teacher = load_teacher(params.teacher)
    plan = PrunePlan.read(workspace.pruned / "plan.json")
    data = SubsetReport.read(workspace.data / "report.json")
    utterances = read_utterances(workspace.data / "train.jsonl")
    guidance = Guidance(knobs.guidance_text, knobs.guidance_voice)
    sampler = PairSampler(teacher, utterances, knobs.tokens_per_step, knobs.seed, guidance, knobs.bistream_share)
    mark = fingerprint(knobs, data.data_sha256, teacher.weights_sha256, hash_weights(workspace.pruned / "model"))
    preset = PRESETS[knobs.preset].changed(knobs.loss)
    losses = {
        "student": HealingLoss(
            preset, teacher.layout, teacher.model.to(device).requires_grad_(False), tuple(plan.retained), guidance
        ),
        "control": HealingLoss(PRESETS["cross_entropy"], teacher.layout),
    }
    sources = {"student": workspace.pruned / "model", "control": teacher.folder}
    rates = {"student": knobs.learning_rate, "control": knobs.control_learning_rate}
    if preset.needs_attention:
        teacher.model.set_attn_implementation("eager")
    reports = {}
    with atomic_path(workspace.student) as out:
        out.mkdir()
        for name in ("student", "control") if knobs.control else ("student",):
            model = load_language_model(sources[name])
            # On a CPU the backward pass of the fused attention is slower than the plain one at these lengths.
            if device.type == "cpu" or (name == "student" and preset.needs_attention):
                model.set_attn_implementation("eager")
            folder = own_progress(workspace.checkpoints / name, mark)
            with tqdm(total=knobs.steps, desc=f"training {name}", unit="step") as bar:
                batches = sampler.from_step
                if name == "student" and knobs.on_policy_share:
                    longest = params.decoding.max_new_tokens
                    batches = OnPolicyBatches(
                        model, teacher, sampler, knobs.steps, knobs.on_policy_share, longest
                    ).from_step
                job = TrainingJob(name, model, losses[name], batches, folder, mark, rates[name])
                reports[name] = train(job, knobs, device, lambda step, bar=bar: bar.update(step - bar.n))  # type: ignore[misc]
            save_model(model, teacher, out / name)
            shutil.copy(folder / "curves.jsonl", out / f"{name}.jsonl")
        report = DistillReport(
            preset=knobs.preset, student=reports["student"], control=reports.get("control"), device=str(device)
        )
        report.write(out / "report.json")
    return report
