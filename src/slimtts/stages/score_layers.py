"""Stage score_layers: how much each layer matters, by WER (SPADE Eq. 1), by block influence, or in sets."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from slimtts.data.batching import token_budget_batches
from slimtts.decoding.teacher_forcing import ForcedBatch, collate, forced_sequence
from slimtts.evaluation.recognition import Recognizer
from slimtts.evaluation.statistics import bootstrap_mean
from slimtts.evaluation.word_errors import WordErrors, count_word_errors
from slimtts.params import Params, RecogniserParams
from slimtts.results import Interval, LayerScore, LayerScores, SubsetReport
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.plot import plot_scores
from slimtts.scoring.set_search import ScoredSet, search_sets
from slimtts.scoring.wli import FULL_MODEL, Trial, leave_one_out
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = 4096
UTTERANCES_A_GROUP = 8


def open_recognizer(params: RecogniserParams) -> Recognizer:
    """The recogniser named in params; "bundled" is the one that comes with the nano teacher."""
    model = str(bundle_folder() / "asr") if params.model == "bundled" else params.model
    return Recognizer.load(model, params.beam_size)


def transcriber(teacher: Teacher, recognizer: Recognizer) -> Callable[[Sequence[torch.Tensor]], list[str]]:
    """Waveforms in, transcripts out."""
    return lambda waves: recognizer.transcribe([w.numpy() for w in waves], teacher.codec.sample_rate_hz)


def forced_batches(teacher: Teacher, tasks: Sequence[SpeakingTask]) -> list[ForcedBatch]:
    """The corpus' own codes of the tasks, as teacher-forced batches."""
    sequences = [forced_sequence(teacher, task.utterance, task.prompt) for task in tasks]
    groups = token_budget_batches([len(s.ids) for s in sequences], TOKENS_PER_BATCH)
    return [collate([sequences[i] for i in group], teacher.layout.pad_id) for group in groups]


def progress_folder(params: Params, data_sha256: str, teacher: Teacher, workspace: Workspace) -> Path:
    """Progress of exactly this measurement; that of other parameters is removed."""
    parts = (params.score_layers, params.decoding, params.recogniser, data_sha256, teacher.weights_sha256)
    mark = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    for other in workspace.scoring_progress.glob("*"):
        if other.name != mark:
            shutil.rmtree(other)
    folder = workspace.scoring_progress / mark
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def wer_scores(trials: Sequence[Trial], params: Params, num_layers: int) -> tuple[Interval, list[LayerScore]]:
    """Full-model WER, and for every layer capped WER with interval, raw WER and no-END rate."""
    by_layer: dict[int, list[tuple[WordErrors, bool]]] = {}
    for trial in trials:
        errors = count_word_errors(trial.text, trial.transcript, params.recogniser.normalizer)
        by_layer.setdefault(trial.layer, []).append((errors, trial.ended))
    knobs = params.score_layers

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
            )
        )
    return capped(FULL_MODEL), scores


def scored_sets(
    teacher: Teacher, batches: Sequence[ForcedBatch], beam_width: int, progress: Path
) -> list[list[ScoredSet]]:
    """The sets of every size that the search looked at; finished sizes are read from `progress`."""
    kept = progress / "levels.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    finished = [[ScoredSet(tuple(one["retained"]), one["divergence"]) for one in level] for level in rows]
    total = teacher.num_layers - 1
    with tqdm(total=total, initial=len(finished), desc="searching sets of layers", unit="cut") as bar:

        def after_level(level: list[ScoredSet]) -> None:
            rows.append([asdict(one) for one in level])
            with atomic_path(kept) as tmp:
                tmp.write_text(json.dumps(rows))
            bar.update(1)

        return search_sets(teacher.model, teacher.layout, batches, beam_width, finished, after_level)


def score_layers(params: Params, workspace: Workspace) -> LayerScores:
    """Writes scores.json and scores.png below `workspace.scores`."""
    knobs = params.score_layers
    teacher = load_teacher(params.teacher)
    data = SubsetReport.read(workspace.data / "report.json")
    tasks = speaking_tasks(workspace, "selection", knobs.utterances)
    progress = progress_folder(params, data.data_sha256, teacher, workspace)
    reference, best_sets = None, {}
    if knobs.method == "wli":
        transcribe = transcriber(teacher, open_recognizer(params.recogniser))
        with tqdm(total=len(tasks), desc="speaking without each layer", unit="utterance") as bar:
            trials = leave_one_out(
                teacher,
                [t.utterance for t in tasks],
                [t.prompt for t in tasks],
                params.decoding,
                transcribe,
                progress,
                UTTERANCES_A_GROUP,
                lambda n: bar.update(n),
            )
        reference, layers = wer_scores(trials, params, teacher.num_layers)
    elif knobs.method == "block_influence":
        influence = block_influence(teacher.model, forced_batches(teacher, tasks))
        layers = [LayerScore(layer=i, importance=value) for i, value in enumerate(influence)]
    else:
        levels = scored_sets(teacher, forced_batches(teacher, tasks), knobs.beam_width, progress)
        alone = {(set(range(teacher.num_layers)) - set(s.retained)).pop(): s.divergence for s in levels[0]}
        layers = [LayerScore(layer=i, importance=alone[i]) for i in range(teacher.num_layers)]
        best_sets = {len(level[0].retained): list(level[0].retained) for level in levels}
    drop_order = [s.layer for s in sorted(layers, key=lambda s: (s.importance, s.layer))]
    scores = LayerScores(
        method=knobs.method,
        num_layers=teacher.num_layers,
        utterances=len(tasks),
        reference_wer=reference,
        layers=layers,
        drop_order=drop_order,
        best_sets=best_sets,
        data_sha256=data.data_sha256,
        teacher_sha256=teacher.weights_sha256,
    )
    with atomic_path(workspace.scores) as out:
        out.mkdir()
        scores.write(out / "scores.json")
        plot_scores(scores, out / "scores.png")
    logger.info("%s: layers from least to most important: %s; best sets %s", knobs.method, drop_order, best_sets)
    return scores
