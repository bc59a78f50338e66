"""Stage prune_layers: plan from scores and limits, then surgery: fewer layers, and narrower ones when asked for."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch

from slimtts.data.manifest import Utterance, read_split
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.params import Params, PruneLayersParams
from slimtts.progress import doing
from slimtts.pruning.budget import DepthCost, Limit, latency_cost, most_layers, parameter_cost
from slimtts.pruning.ffn_width import keep_channels, kept_width, narrow_ffn
from slimtts.pruning.plan import check_retained, left_to_chance, plan_retained
from slimtts.pruning.surgery import remove_layers
from slimtts.quantization.placement import place_for_speech
from slimtts.results import LayerScores, PrunePlan
from slimtts.stages.score_layers import forced_batches
from slimtts.stages.voices import SpeakingTask
from slimtts.storage import atomic_path
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.checkpoint import save_language_model, save_tokenizer
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)


def calibration_tasks(utterances: list[Utterance], count: int) -> list[SpeakingTask]:
    """The first `count` utterances (their order is random by seed), each after the next one of its voice, if any."""
    by_voice: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_voice.setdefault(utterance.voice, []).append(utterance)
    following = {
        before.id: after for rows in by_voice.values() for before, after in zip(rows, [*rows[1:], rows[0]], strict=True)
    }
    tasks = []
    for utterance in utterances[:count]:
        spoken = following[utterance.id]
        prompt = Prompt() if spoken is utterance else Prompt(spoken.text, spoken.codes, spoken.voice)
        tasks.append(SpeakingTask(utterance, prompt))
    return tasks


def calibration_batches(knobs: PruneLayersParams, teacher: Teacher, workspace: Workspace) -> list[ForcedBatch]:
    """What the choice of channels looks at; nothing when none is to go."""
    if knobs.ffn_share == 1:
        return []
    utterances = read_split(workspace.data, "train")
    return forced_batches(teacher, calibration_tasks(utterances, knobs.calibration_utterances))


def narrowed_teacher(model: Any, ffn_share: float) -> Any:
    """The teacher with as many FFN channels as the student will have, whichever they are: what it costs is the same."""
    if ffn_share == 1:
        return model
    channels = torch.arange(kept_width(model.config.intermediate_size, ffn_share))
    return keep_channels(model, [channels] * model.config.num_hidden_layers)


def choose_layers(
    knobs: PruneLayersParams, teacher: Teacher, workspace: Workspace
) -> tuple[list[int], list[int], DepthCost | None]:
    """The layers that stay, those tied at the cut, and what latency was measured to be when it has a limit."""
    if knobs.retained:
        return check_retained(knobs.retained, teacher.num_layers), [], None
    scores = LayerScores.read(workspace.scores / "scores.json")
    full_depth = narrowed_teacher(teacher.model, knobs.ffn_share)
    parameters = parameter_cost(teacher.model, full_depth)
    limits = [Limit("prune_layers.max_parameter_share", knobs.max_parameter_share, parameters)]
    latency = None
    if knobs.max_latency_share < 1:
        with doing("seconds a token are measured at full and at half depth"):
            latency = latency_where_it_speaks(teacher, full_depth)
        limits.append(Limit("prune_layers.max_latency_share", knobs.max_latency_share, latency))
    depth = most_layers(knobs.keep_layers, teacher.num_layers, limits)
    retained = plan_retained(scores, depth)
    return retained, left_to_chance(scores, retained), latency


def latency_where_it_speaks(teacher: Teacher, full_depth: Any) -> DepthCost:
    """Measured on copies where students will speak; what is pruned keeps its device and precision."""
    if not torch.cuda.is_available():
        return latency_cost(teacher.model, full_depth, teacher.layout)
    placed = place_for_speech(copy.deepcopy(teacher.model))
    narrow = placed if full_depth is teacher.model else place_for_speech(copy.deepcopy(full_depth))
    return latency_cost(placed, narrow, teacher.layout)


def prune_layers(params: Params, workspace: Workspace) -> PrunePlan:
    """Writes model/ and plan.json below `workspace.pruned`; the model is proven to load strictly."""
    knobs = params.prune_layers
    teacher = load_teacher(params.teacher)
    batches = calibration_batches(knobs, teacher, workspace)
    retained, tied, latency = choose_layers(knobs, teacher, workspace)
    student = remove_layers(teacher.model, retained)
    if knobs.ffn_share < 1:
        student = narrow_ffn(student, batches, knobs.ffn_share)
    plan = PrunePlan(
        num_layers=teacher.num_layers,
        retained=retained,
        dropped=[i for i in range(teacher.num_layers) if i not in retained],
        teacher_parameters=teacher.model.num_parameters(),
        student_parameters=student.num_parameters(),
        teacher_sha256=teacher.weights_sha256,
        latency_share=latency.share(len(retained)) if latency else None,
        tied_layers=tied,
    )
    with atomic_path(workspace.pruned) as out:
        out.mkdir()
        save_language_model(student, out / "model")
        save_tokenizer(teacher.tokenizer, out / "model")
        plan.write(out / "plan.json")
    logger.info(decision(plan))
    if tied:
        logger.warning(
            "layers %s have equal scores at the cut: their numbers chose, the gate will say INCOMPLETE", tied
        )
    return plan


def decision(plan: PrunePlan) -> str:
    """One sentence for the log."""
    share = plan.student_parameters / plan.teacher_parameters
    kept = f"kept {len(plan.retained)}/{plan.num_layers} layers, dropped {plan.dropped}; {share:.2f} of the parameters"
    if plan.latency_share is None:
        return kept
    return f"{kept}, about {plan.latency_share:.2f} of the seconds a token"
