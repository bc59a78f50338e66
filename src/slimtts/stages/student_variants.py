"""The student's lighter variants that are judged beside it: made once, in the folder of the evaluation's progress."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from slimtts.data.manifest import read_split
from slimtts.model_files import hash_model
from slimtts.params import Params
from slimtts.quantization.folders import write_variant
from slimtts.quantization.sparsity import input_norms
from slimtts.quantization.variants import variant_of
from slimtts.shared_work import make_items
from slimtts.stages.prune_layers import calibration_tasks
from slimtts.stages.score_layers import forced_batches
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_beside
from slimtts.workspace import Workspace

CALIBRATION_UTTERANCES = 32


def variant_folders(params: Params, workspace: Workspace, teacher: Teacher, progress: Path) -> dict[str, Path]:
    """`student-NAME` -> folder, for each of `evaluate_student.variants`; a folder is known by the student's hash."""
    names = params.evaluate_student.variants
    if not names:
        return {}
    student = workspace.student / "student"
    mark = hash_model(student)[:16]
    folders = {name: progress / f"model-{name}-{mark}" for name in names}
    makers = {folders[name].name: partial(make_variant, teacher, student, workspace.data, name) for name in names}
    make_items(progress, makers)
    return {f"student-{name}": folder for name, folder in folders.items()}


def make_variant(teacher: Teacher, student: Path, data: Path, name: str, out: Path) -> None:
    """One variant; which weights matter is seen on training sentences where some are to go."""
    norms = calibrated_norms(load_beside(teacher, student), data) if variant_of(name).is_sparse else None
    write_variant(student, name, out, norms)


def calibrated_norms(student: Teacher, data: Path) -> dict[str, torch.Tensor]:
    """What Wanda needs, from the first training sentences below `data`."""
    utterances = read_split(data, "train")
    return input_norms(student.model, forced_batches(student, calibration_tasks(utterances, CALIBRATION_UTTERANCES)))
