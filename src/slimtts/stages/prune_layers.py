"""Stage prune_layers: plan from scores and budget, then surgery."""

from __future__ import annotations

import logging

from slimtts.params import Params
from slimtts.pruning.plan import plan_retained
from slimtts.pruning.surgery import remove_layers
from slimtts.results import LayerScores, PrunePlan
from slimtts.storage import atomic_path
from slimtts.teachers.loading import load_language_model, load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)


def prune_layers(params: Params, workspace: Workspace) -> PrunePlan:
    """Writes model/ and plan.json below `workspace.pruned`; the model is proven to load strictly."""
    teacher = load_teacher(params.teacher)
    scores = LayerScores.read(workspace.scores / "scores.json")
    retained = plan_retained(scores.drop_order, teacher.num_layers, params.prune_layers.keep_layers)
    student = remove_layers(teacher.model, retained)
    plan = PrunePlan(
        num_layers=teacher.num_layers,
        retained=retained,
        dropped=[i for i in range(teacher.num_layers) if i not in retained],
        teacher_parameters=teacher.model.num_parameters(),
        student_parameters=student.num_parameters(),
        teacher_sha256=teacher.weights_sha256,
    )
    with atomic_path(workspace.pruned) as out:
        out.mkdir()
        student.half().save_pretrained(out / "model")
        teacher.tokenizer.save_pretrained(out / "model")
        load_language_model(out / "model")
        plan.write(out / "plan.json")
    share = plan.student_parameters / plan.teacher_parameters
    logger.info(f"kept {len(retained)}/{plan.num_layers} layers, dropped {plan.dropped}; {share:.2f} of the parameters")
    return plan
