"""Stage score_layers: how much each layer matters, by WER (SPADE Eq. 1), by block influence, or in sets."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from slimtts.data.batching import token_budget_batches
from slimtts.decoding.teacher_forcing import ForcedBatch, collate, forced_sequence
from slimtts.distill.acceleration import allow_tf32
from slimtts.distill.training import pick_device
from slimtts.evaluation.statistics import bootstrap_mean
from slimtts.evaluation.word_errors import WordErrors
from slimtts.evaluation.word_meter import WordCounter, WordMeter, name_of_recognizer, open_recognizer
from slimtts.model_files import hash_model
from slimtts.params import Params
from slimtts.plots.importance import plot_scores
from slimtts.progress import doing, progress_bar
from slimtts.results import Interval, LayerScore, LayerScores, SubsetReport
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.early_stop import order_with_settled, settled_ranks
from slimtts.scoring.set_search import Measurement, ScoredSet, as_good_as_best, search_sets
from slimtts.scoring.shared_prefix import Layers
from slimtts.scoring.ties import require_finite, tied_groups
from slimtts.scoring.wli import FULL_MODEL, Trial, leave_one_out
from slimtts.shared_work import make_items, progress_of
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

# On a CPU what a layer needs stays in the cache: 1,024 is a quarter faster than 4,096 (2026-11-21, Zen 4).
TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16_384}
UTTERANCES_A_GROUP = 8  # spoken together
GROUPS_A_LOOK, LOOKS = 2, 8  # at least so many between two looks at which layers are settled; at most so many looks
CODE = ("scoring", "decoding", "stages/score_layers.py")  # measurements by other code are not gone on with


def forced_batches(teacher: Teacher, tasks: Sequence[SpeakingTask]) -> list[ForcedBatch]:
    """The corpus' own codes of the tasks, as teacher-forced batches where the model is."""
    device = next(teacher.model.parameters()).device
    sequences = [forced_sequence(teacher, task.utterance, task.prompt) for task in tasks]
    groups = token_budget_batches([len(s.ids) for s in sequences], TOKENS_PER_BATCH[device.type])
    return [collate([sequences[i] for i in group], teacher.layout.pad_id).to(device) for group in groups]


def by_layer_of(trials: Sequence[Trial], params: Params) -> dict[int, list[tuple[WordErrors, bool]]]:
    """Word errors and whether it ended, of all trials without a layer, in their order."""
    by_layer: dict[int, list[tuple[WordErrors, bool]]] = {}
    words = WordCounter.of(params)
    for trial in trials:
        errors = words.count(trial.text, trial.transcript)
        by_layer.setdefault(trial.layer, []).append((errors, trial.ended))
    return by_layer


class EarlyStop:
    """Layers whose rank was settled before all utterances were spoken, with that rank; none without a risk."""

    def __init__(self, params: Params, num_layers: int, utterances: int) -> None:
        self.params, self.num_layers, self.utterances = params, num_layers, utterances
        self.settled: dict[int, int] = {}

    @property
    def stage_size(self) -> int | None:
        """Utterances between two looks; None for no look at all."""
        if self.params.score_layers.early_stop_risk is None:
            return None
        return UTTERANCES_A_GROUP * max(GROUPS_A_LOOK, self.utterances // (LOOKS * UTTERANCES_A_GROUP))

    def __call__(self, trials: Sequence[Trial]) -> dict[int, int]:
        """Those that are settled now; whoever is settled stays so."""
        risk = self.params.score_layers.early_stop_risk
        if risk is not None:
            by_layer = by_layer_of(trials, self.params)
            capped = [np.array([e.capped_wer for e, _ in by_layer[layer]]) for layer in range(self.num_layers)]
            for layer, rank in settled_ranks(capped, self.utterances, risk).items():
                if layer not in self.settled:
                    spoken = f"{len(capped[layer])}/{self.utterances} utterances"
                    logger.info("layer %d: rank %d of %d settled after %s", layer, rank, self.num_layers, spoken)
                    self.settled[layer] = rank
        return self.settled


def wer_scores(trials: Sequence[Trial], params: Params, num_layers: int) -> tuple[Interval, list[LayerScore]]:
    """Full-model WER, and for every layer capped WER with interval, raw WER and no-END rate."""
    by_layer, knobs = by_layer_of(trials, params), params.score_layers

    def capped(layer: int) -> Interval:
        return bootstrap_mean([e.capped_wer for e, _ in by_layer[layer]], knobs.bootstrap_samples, knobs.seed)

    scores = []
    for layer in range(num_layers):
        rows = by_layer[layer]
        interval = capped(layer)
        scores.append(
            LayerScore(
                layer=layer,
                importance=interval.value,
                wer_capped=interval,
                wer_raw=sum(e.wer for e, _ in rows) / len(rows),
                no_end_rate=sum(not ended for _, ended in rows) / len(rows),
                utterances=len(rows),
            )
        )
    return capped(FULL_MODEL), scores


def scored_sets(
    teacher: Teacher, batches: Sequence[ForcedBatch], beam_width: int, progress: Path
) -> list[list[ScoredSet]]:
    """The sets of every size that the search looked at; what was measured is kept in `progress`."""

    def measured(jobs: Mapping[str, Measurement]) -> dict[str, dict[Layers, float]]:
        make_items(progress, {name: partial(_write_sums, job) for name, job in jobs.items()})
        kept = {name: json.loads((progress / name).read_text()) for name in jobs}
        return {name: {tuple(layers): total for layers, total in sums} for name, sums in kept.items()}

    with progress_bar(total=teacher.num_layers - 1, desc="searching sets of layers", unit="cut") as bar:
        return search_sets(teacher.model, teacher.layout, batches, beam_width, measured, lambda _: bar.update(1))


def _write_sums(job: Measurement, out: Path) -> None:
    out.write_text(json.dumps(list(job().items())))


def fill_progress(params: Params, workspace: Workspace) -> None:
    """Measures beside other processes that do the same, and writes no result: the stage finds all of it done."""
    if params.score_layers.method != "block_influence":  # which is a single pass over the teacher
        measure_layers(params, workspace)


def score_layers(params: Params, workspace: Workspace) -> LayerScores:
    """Writes scores.json and scores.png below `workspace.scores`."""
    scores = measure_layers(params, workspace)
    with atomic_path(workspace.scores) as out:
        out.mkdir()
        scores.write(out / "scores.json")
        plot_scores(scores, out / "scores.png")
    for group in scores.tied_layers:
        logger.warning("layers %s have equal scores: their order says nothing", group)
    for size, sets in scores.tied_sets.items():
        logger.warning("%d sets of %d layers are equally good: %s is only the first", len(sets), size, sets[0])
    logger.info(
        "%s: layers from least to most important: %s; best sets %s", scores.method, scores.drop_order, scores.best_sets
    )
    return scores


def measure_layers(params: Params, workspace: Workspace) -> LayerScores:
    """The scores; finished parts of the measurement are kept in `workspace.scoring_progress`."""
    knobs = params.score_layers
    teacher = load_teacher(params.teacher)
    device = pick_device("auto")
    allow_tf32(device)
    teacher.model.to(device)
    data = SubsetReport.read(workspace.data / "report.json")
    tasks = speaking_tasks(workspace, "selection", knobs.utterances)
    listener = (params.teacher.language, name_of_recognizer(params.recogniser)) if knobs.method == "wli" else ()
    marks = (knobs, params.decoding, params.recogniser, listener, data.data_sha256, hash_model(teacher.folder))
    progress = progress_of(workspace.scoring_progress, CODE, *marks)
    reference, best_sets, stop = None, {}, EarlyStop(params, teacher.num_layers, len(tasks))
    tied_sets: dict[int, list[list[int]]] = {}
    if knobs.method == "wli":
        words = WordMeter(params, open_recognizer(params.recogniser))
        transcribe = words.transcriber(teacher.codec.sample_rate_hz)
        with progress_bar(total=len(tasks), desc="speaking without each layer", unit="utterance") as bar:
            trials = leave_one_out(
                teacher,
                [t.utterance for t in tasks],
                [t.prompt for t in tasks],
                params.decoding,
                transcribe,
                progress,
                UTTERANCES_A_GROUP,
                lambda n: bar.update(n),
                stop.stage_size,
                stop,
            )
        reference, layers = wer_scores(trials, params, teacher.num_layers)
    elif knobs.method == "block_influence":
        with doing(f"block influence on {len(tasks)} sentences is measured"):
            influence = block_influence(teacher.model, forced_batches(teacher, tasks))
        layers = [LayerScore(layer=i, importance=value) for i, value in enumerate(influence)]
    else:
        levels = scored_sets(teacher, forced_batches(teacher, tasks), knobs.beam_width, progress)
        alone = {(set(range(teacher.num_layers)) - set(s.retained)).pop(): s.divergence for s in levels[0]}
        layers = [LayerScore(layer=i, importance=alone[i]) for i in range(teacher.num_layers)]
        best_sets = {len(level[0].retained): list(level[0].retained) for level in levels}
        tied_sets = {len(level[0].retained): ties for level in levels if len(ties := as_good_as_best(level)) > 1}
    importance = [score.importance for score in layers]
    require_finite(importance)
    return LayerScores(
        method=knobs.method,
        num_layers=teacher.num_layers,
        utterances=len(tasks),
        reference_wer=reference,
        layers=layers,
        drop_order=order_with_settled(importance, stop.settled),
        best_sets=best_sets,
        tied_layers=tied_groups(importance, stop.settled),
        tied_sets=tied_sets,
        early_stop_risk=knobs.early_stop_risk if knobs.method == "wli" else None,
        data_sha256=data.data_sha256,
        teacher_sha256=teacher.weights_sha256,
    )
