"""Stage distill_student: heals the pruned model, and trains the teacher on for the same budget as a control."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from slimtts.curves import CURVES
from slimtts.data.manifest import read_split, read_utterances
from slimtts.data.text_list import read_lines
from slimtts.decoding.guidance import Guidance
from slimtts.distill.acceleration import (
    accelerated,
    allow_tf32,
    compiled_chunk_gradient,
    hold_linears_in,
    is_compiled,
)
from slimtts.distill.attention import use_grouped_attention
from slimtts.distill.batches import PairSampler
from slimtts.distill.distributed import World, check_parallel, gathered, joined
from slimtts.distill.head_loss import chunk_gradient
from slimtts.distill.healing import PRESETS, HealingLoss, Preset
from slimtts.distill.packing import use_varlen_attention
from slimtts.distill.ranks import current_rank, run_ranks
from slimtts.distill.teacher_cache import TeacherCache, TeacherIdentity
from slimtts.distill.training import TrainingJob, multiplies_bf16, pick_device, train
from slimtts.errors import InvalidInputError
from slimtts.params import DistillStudentParams, Params
from slimtts.progress import progress_bar
from slimtts.pruning.vocabulary import needed_ids, prompted_ids, trim_vocabulary
from slimtts.results import DistillReport, PrunePlan, SubsetReport
from slimtts.storage import atomic_path, remove
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.checkpoint import hash_weights, load_language_model, save_language_model, save_tokenizer
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.model_folder import ORIGIN, copy_license, origin_of
from slimtts.workspace import Workspace

# Knobs that leave the training as it is, but for rounding.
WITHOUT_EFFECT = {
    "checkpoint_every_steps", "device", "control", "control_steps", "vocabulary", "vocabulary_texts",
    "micro_batches", "processes", "parallel", "activation_checkpointing", "compile", "teacher_cache",
}  # fmt: skip


def fingerprint(params: DistillStudentParams, *parts: str) -> str:
    """Names a training: equal only when parameters, data, teacher and plan are equal."""
    kept = params.model_dump(exclude=WITHOUT_EFFECT)
    return hashlib.sha256(repr((sorted(kept.items()), parts)).encode()).hexdigest()[:16]


def knobs_of(name: str, knobs: DistillStudentParams) -> DistillStudentParams:
    """Those of one training: the control may be shorter than the student's."""
    return knobs.model_copy(update={"steps": knobs.steps_of_control}) if name == "control" else knobs


def remove_others(folder: Path) -> None:
    """Removes the progress of other parameters, which lies beside `folder`."""
    for other in folder.parent.glob("*"):
        if other.name != folder.name:
            remove(other)


def save_model(model: Any, teacher: Teacher, out: Path, retained: Sequence[int] | None = None) -> None:
    """A standard checkpoint in fp16; beside it the tokenizer, slimtts.json and the teacher's licence.

    `retained` are the teacher's layers that `model` holds, where that is known.
    """
    save_language_model(model, out)
    save_tokenizer(teacher.tokenizer, out)
    origin_of(teacher, retained).write(out / ORIGIN)
    copy_license(teacher.folder, out)


def kept_rows(knobs: DistillStudentParams, teacher: Teacher, workspace: Workspace) -> list[int] | None:
    """The ids that a student with a trimmed vocabulary keeps; None when it keeps all.

    Raises:
        InvalidInputError: this family's vocabulary cannot be trimmed, or the file of texts cannot be read.
    """
    if knobs.vocabulary == "keep":
        return None
    names = ("train", "selection", "test", "recorded")
    files = [file for name in names if (file := workspace.data / f"{name}.jsonl").is_file()]
    utterances = [utterance for file in files for utterance in read_utterances(file)]
    asked = [(u.text, Prompt(u.text, u.codes, u.voice)) for u in utterances]
    if knobs.vocabulary_texts:
        lines = read_lines(Path(knobs.vocabulary_texts), "distill_student.vocabulary_texts")
        texts = [line.split("\t")[-1].strip() for line in lines if line.strip()]
        asked += [(text, Prompt(text, utterances[0].codes, utterances[0].voice)) for text in texts if text]
    return needed_ids(teacher, prompted_ids(teacher, asked))


def distill_student(params: Params, workspace: Workspace) -> DistillReport:
    """Writes student/, control/, curves and report.json below `workspace.student`.

    With several processes this one starts them, each of which comes here again, and waits.
    """
    knobs, rank = params.distill_student, current_rank()
    check_parallel(knobs)
    if knobs.processes > 1 and rank is None:
        return in_several_processes(params, workspace)
    device = pick_device(knobs.device, rank.local if rank else 0)
    with joined(knobs, device) as world:
        report = heal(params, workspace, device, world)
    return report


def in_several_processes(params: Params, workspace: Workspace) -> DistillReport:
    """Runs this stage's command as `processes` processes, with these very parameters."""
    knobs = params.distill_student
    with tempfile.TemporaryDirectory(prefix="slimtts-params-") as folder:
        own = Path(folder) / "params.yaml"
        own.write_text(yaml.safe_dump(params.model_dump(mode="json")))
        threads = max(1, torch.get_num_threads() // knobs.processes)
        arguments = ["--workspace", str(workspace.root.resolve()), "--params", str(own), "--threads", str(threads)]
        run_ranks(["-m", "slimtts.cli", "distill_student", *arguments], knobs.processes)
    return DistillReport.read(workspace.student / "report.json")


def set_attention(model: Any, is_trained: bool, knobs: DistillStudentParams, preset: Preset | None) -> None:
    """The attention that is fastest among those that give what is needed."""
    is_cpu = model.device.type == "cpu"
    if preset is not None and preset.needs_attention:
        model.set_attn_implementation("eager")
    elif knobs.packed_row_tokens and not is_cpu:
        use_varlen_attention(model)
    elif is_cpu and (is_trained or not knobs.packed_row_tokens):
        # Faster than the fused attention at these lengths, in its backward pass at those of packed rows too.
        use_grouped_attention(model)


def check_cacheable(preset: Preset, guidance: Guidance) -> None:
    """Raises InvalidInputError for a loss that needs more of the teacher than its cache keeps."""
    unserved = [name for name in ("attention", "embedding") if getattr(preset, name)]
    unserved += [f"guidance {name}" for name in guidance.companions]
    if unserved:
        raise InvalidInputError(
            "distill_student.teacher_cache",
            f"a loss with {', '.join(unserved)}",
            "cross_entropy, skew_kl and latent, without guidance",
            "set teacher_cache to the empty text, or change distill_student.loss",
        )


def open_teacher_cache(knobs: DistillStudentParams, teacher: Teacher, loss: HealingLoss) -> TeacherCache:
    """The cache of this teacher for this loss.

    Raises:
        InvalidInputError: the loss needs more than is kept there, or the folder belongs to another teacher.
    """
    check_cacheable(loss.preset, loss.guidance)
    layout = teacher.layout
    rows = (layout.first_code_id, layout.num_codes, layout.end_id)
    layers = tuple(loss.matches) if loss.preset.latent else ()
    return TeacherCache(Path(knobs.teacher_cache), TeacherIdentity(teacher.weights_sha256, layers, rows))


def heal(params: Params, workspace: Workspace, device: torch.device, world: World) -> DistillReport:
    """Trains student and control; the process that leads writes `workspace.student`."""
    knobs = params.distill_student
    teacher = load_teacher(params.teacher)
    plan = PrunePlan.read(workspace.pruned / "plan.json")
    data = SubsetReport.read(workspace.data / "report.json")
    utterances = read_split(workspace.data, "train")
    guidance = Guidance(knobs.guidance_text, knobs.guidance_voice)
    sampler = PairSampler(
        teacher, utterances, knobs.tokens_per_step, knobs.seed, guidance, knobs.bistream_share, knobs.packed_row_tokens
    )
    basis = (data.data_sha256, teacher.weights_sha256, hash_weights(workspace.pruned / "model"))
    preset = PRESETS[knobs.preset].changed(knobs.loss)
    kept = kept_rows(knobs, teacher, workspace)
    allow_tf32(device)
    compiled = is_compiled(knobs.compile, device)
    of_chunk = compiled_chunk_gradient() if compiled else chunk_gradient
    listener = teacher.model.to(device).requires_grad_(False)
    if multiplies_bf16(device):
        hold_linears_in(listener, torch.bfloat16)
    losses = {
        "student": HealingLoss(preset, teacher.layout, listener, tuple(plan.retained), guidance, of_chunk),
        "control": HealingLoss(PRESETS["cross_entropy"], teacher.layout, of_chunk=of_chunk),
    }
    if knobs.teacher_cache:
        losses["student"].memory = open_teacher_cache(knobs, teacher, losses["student"])
    sources = {"student": workspace.pruned / "model", "control": teacher.folder}
    rates = {"student": knobs.learning_rate, "control": knobs.control_learning_rate}
    set_attention(listener, is_trained=False, knobs=knobs, preset=preset)
    reports = {}
    with atomic_path(workspace.student) if world.leads else nullcontext() as out:
        if out:
            out.mkdir()
        for name in ("student", "control") if knobs.control else ("student",):
            model = load_language_model(sources[name])
            set_attention(model.to(device), is_trained=True, knobs=knobs, preset=preset if name == "student" else None)
            own = knobs_of(name, knobs)
            mark = fingerprint(own, *basis)
            folder = workspace.checkpoints / name / mark
            if world.leads:
                remove_others(folder)
            with (
                progress_bar(total=own.steps, desc=f"training {name}", unit="step", disable=not world.leads) as bar,
                accelerated(model, compiled, knobs.activation_checkpointing),
                accelerated(listener, compiled and name == "student", recomputed=False),
            ):
                job = TrainingJob(name, model, losses[name], sampler.from_step, folder, mark, rates[name])
                reports[name] = train(job, own, device, lambda step, bar=bar: bar.update(step - bar.n), world)  # type: ignore[misc]
            model = gathered(model, lambda name=name: load_language_model(sources[name]), world)  # type: ignore[misc]
            if not out:
                continue
            system = teacher
            if name == "student" and kept is not None:
                system = trim_vocabulary(model.to("cpu"), teacher, kept)
                model = system.model
            save_model(model, system, out / name, plan.retained if name == "student" else range(plan.num_layers))
            # Of the file, as everywhere: evaluation, version and card name the student by it.
            reports[name] = reports[name].model_copy(update={"weights_sha256": hash_weights(out / name)})
            shutil.copy(folder / CURVES, out / f"{name}.jsonl")
        report = DistillReport(
            preset=knobs.preset,
            student=reports["student"],
            control=reports.get("control"),
            device=f"{device}, {world.size} processes, {world.parallel}" if world.size > 1 else str(device),
        )
        if out:
            report.write(out / "report.json")
    return report
