"""Which way to a student is best: variants of the pipeline's parameters, healed and judged alike.

python -m benchmarks.student_study run benchmarks/studies/masks.yaml
python -m benchmarks.student_study table benchmarks/studies/masks.yaml --baseline greedy

A study is a YAML file: `split` and `utterances` that judge, `seeds` of the training, `base` (changes to params.yaml)
and `variants` (name -> changes to the base; `teacher` is the teacher itself). A variant with a seed is one job:
prune, heal, speak, count. Several processes may run one study: they claim jobs one at a time, and a killed job is
resumed by `run --resume`. The results are lines of JSON in benchmarks/results with the errors of every utterance, so
that all tables and paired intervals can be computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional

from slimtts.decoding.generation import generate
from slimtts.errors import InvalidInputError
from slimtts.evaluation.naturalness import MosPredictor
from slimtts.evaluation.statistics import (
    bootstrap_corpus_wer,
    bootstrap_mean,
    compare_wer,
    paired_bootstrap_mean,
)
from slimtts.evaluation.systems import as_arrays
from slimtts.evaluation.word_errors import WordErrors, corpus_wer
from slimtts.evaluation.word_meter import WordMeter, open_recognizer
from slimtts.params import Params, parse_params
from slimtts.results import Interval
from slimtts.scoring.shared_prefix import target_log_probabilities
from slimtts.stages.distill_student import distill_student
from slimtts.stages.evaluate_student import open_voice_encoder
from slimtts.stages.prune_layers import prune_layers
from slimtts.stages.score_layers import forced_batches, score_layers
from slimtts.stages.subset_data import subset_data
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_beside, load_teacher
from slimtts.workspace import Workspace

ROOT = Path(__file__).parent.parent
TEACHER = "teacher"
SAMPLES = 2000
DIVERGENCE_UTTERANCES = 128
NOT_PARAMS = ("seeds",)
READ_BY = {
    "data": ("teacher", "subset_data", "decoding", "recogniser"),
    "scores": ("teacher", "subset_data", "decoding", "recogniser", "score_layers"),
}


@dataclass(frozen=True)
class Study:
    """What is compared, on which sentences."""

    name: str
    split: str
    utterances: int
    seeds: list[int]
    variants: dict[str, dict[str, Any]]
    base: dict[str, Any] = field(default_factory=dict)
    mos_utterances: int = 0  # above 0: similarity too

    @classmethod
    def read(cls, path: Path) -> Study:
        values = yaml.safe_load(path.read_text())
        values["variants"] = {name: changes or {} for name, changes in values["variants"].items()}
        return cls(path.stem, **values)

    def jobs(self) -> Iterator[tuple[str, int]]:
        """Every variant with its first seed, then with its second."""
        for index in range(len(self.seeds)):
            for variant, changes in self.variants.items():
                seeds = [0] if variant == TEACHER else changes.get("seeds", self.seeds)
                if index < len(seeds):
                    yield variant, seeds[index]

    def params(self, variant: str, seed: int) -> Params:
        values = yaml.safe_load((ROOT / "params.yaml").read_text())
        changes = {"distill_student.control": False, **self.base, **self.variants[variant]}
        for key, value in {**changes, "distill_student.seed": seed}.items():
            if key not in NOT_PARAMS:
                section, knob = key.split(".", 1)
                values[section][knob] = value
        return parse_params(values, f"study {self.name}, {variant}")

    @property
    def results(self) -> Path:
        return ROOT / "benchmarks" / "results" / f"{self.name}.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return [row for row in map(json.loads, lines) if row["variant"] in self.variants]


def shared_output(params: Params, scratch: Path, stage: str) -> Path:
    """Output folder of a stage that several jobs share, made once; keyed by the sections that the stage reads."""
    sections = repr([getattr(params, name) for name in READ_BY[stage]])
    workspace = Workspace(scratch / "shared" / f"{stage}-{hashlib.sha256(sections.encode()).hexdigest()[:12]}")
    try:
        workspace.root.mkdir(parents=True)
    except FileExistsError:
        while not (workspace.root / stage).exists():  # another process makes it
            time.sleep(1)
        return workspace.root / stage
    if stage == "scores":
        workspace.data.symlink_to(shared_output(params, scratch, "data"))
        score_layers(params, workspace)
    else:
        subset_data(params, workspace)
    return workspace.root / stage


@torch.inference_mode()
def divergence(teacher: Teacher, student: Teacher, tasks: list[SpeakingTask]) -> float:
    """KL(teacher || student) a code on the recorded codes of some tasks: steadier than WER, and not what is heard."""
    total, positions = 0.0, 0
    some = tasks[:DIVERGENCE_UTTERANCES]
    for theirs, ours in zip(forced_batches(teacher, some), forced_batches(student, some), strict=True):
        p = target_log_probabilities(teacher.model, teacher.layout, theirs)
        q = target_log_probabilities(student.model, student.layout, ours)
        total += float(functional.kl_div(q, p, log_target=True, reduction="sum"))
        positions += len(p)
    return total / positions


def judge(params: Params, workspace: Workspace, study: Study, checkpoint: Path | None) -> dict[str, Any]:
    """Counts of every utterance of the study's split, spoken by the checkpoint (None: by the teacher)."""
    teacher = load_teacher(params.teacher)
    system = teacher if checkpoint is None else load_beside(teacher, checkpoint)
    rate_hz = teacher.codec.sample_rate_hz
    tasks = speaking_tasks(workspace, study.split, study.utterances)
    ids = [system.prompt_ids(task.utterance.text, task.prompt) for task in tasks]
    spoken = generate(system.model, system.layout, ids, params.decoding)
    waves = as_arrays([teacher.audio(s.codes) for s in spoken])
    words = WordMeter(params, open_recognizer(params.recogniser))
    transcripts = words.transcribe(waves, rate_hz)
    errors = [words.count(task.utterance.text, text) for task, text in zip(tasks, transcripts, strict=True)]
    heard: dict[str, Any] = {
        "counts": [(e.hits, e.substitutions, e.deletions, e.insertions) for e in errors],
        "no_end": sum(not s.ended for s in spoken),
    }
    if checkpoint is not None:
        heard["divergence"] = round(divergence(teacher, system, tasks), 4)
    if study.mos_utterances:
        similarity = open_voice_encoder(params.evaluate_student.similarity)
        voices = similarity.embed(as_arrays([teacher.audio(task.prompt.codes) for task in tasks]), rate_hz)
        heard["similarity"] = (similarity.embed(waves, rate_hz) * voices).sum(1).round(4).tolist()
        heard["mos"] = [round(m, 3) for m in MosPredictor().predict(waves[: study.mos_utterances], rate_hz)]
    return heard


def run_job(study: Study, variant: str, seed: int, scratch: Path) -> dict[str, Any]:
    """One student, from params to counts."""
    params = study.params(variant, seed)
    workspace = Workspace(scratch / study.name / f"{variant}-{seed}")
    needed = ["data"] if variant == TEACHER or params.prune_layers.retained else ["data", "scores"]
    for stage in needed:
        if not (workspace.root / stage).is_symlink():
            (workspace.root / stage).symlink_to(shared_output(params, scratch, stage))
    row = {"variant": variant, "seed": seed, "split": study.split, "date": str(date.today())}
    if variant == TEACHER:
        return row | {"layers": None} | judge(params, workspace, study, None)
    plan = prune_layers(params, workspace)
    started = time.monotonic()
    report = distill_student(params, workspace).student
    row |= {
        "changes": {**study.base, **study.variants[variant]},
        "retained": plan.retained,
        "parameters": plan.student_parameters,
        "steps": report.steps,
        "tokens": report.tokens,
        "healed_s": round(time.monotonic() - started),
        "threads": torch.get_num_threads(),
        "final_loss": round(report.final_loss, 4),
        "weights": report.weights_sha256[:12],
    }
    return row | judge(params, workspace, study, workspace.student / "student")


def run(study: Study, scratch: Path, resume: bool) -> None:
    """Works on unclaimed jobs until none is left; with `resume`, also on claimed ones that gave no result."""
    for variant, seed in study.jobs():
        if any((row["variant"], row["seed"]) == (variant, seed) for row in study.rows()):
            continue
        try:
            (scratch / study.name / f"{variant}-{seed}").mkdir(parents=True, exist_ok=resume)
        except FileExistsError:
            continue
        row = run_job(study, variant, seed, scratch)
        study.results.parent.mkdir(exist_ok=True)
        with study.results.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{study.name}: {variant}, seed {seed}: {percent_wer([row]):.1f} %, {row.get('healed_s')} s", flush=True)


def errors_of(rows: list[dict[str, Any]]) -> list[WordErrors]:
    """Counts of each utterance, summed over the rows (seeds): the utterance is what intervals resample."""
    utterances = zip(*(row["counts"] for row in rows), strict=True)
    return [WordErrors(*(sum(part) for part in zip(*same, strict=True))) for same in utterances]


def percent_wer(rows: list[dict[str, Any]]) -> float:
    """Corpus WER over all rows."""
    return 100 * corpus_wer(errors_of(rows))


def repeated(rows: list[dict[str, Any]], times: int) -> list[dict[str, Any]]:
    """The one teacher against `times` students: its counts as often."""
    return [rows[i % len(rows)] for i in range(times)]


def shown(interval: Interval, form: str = "+.1f", scale: float = 1) -> str:
    value, low, high = (format(scale * x, form) for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def per_utterance(rows: list[dict[str, Any]], key: str) -> list[float]:
    """Mean over seeds of each utterance's number."""
    return [sum(values) / len(values) for values in zip(*(row[key] for row in rows), strict=True)]


def table(study: Study, baseline: str) -> str:
    """Markdown; every variant against the baseline on the same sentences, with the seeds that both have."""
    rows = study.rows()
    by_name = {name: [r for r in rows if r["variant"] == name] for name in study.variants}
    if not by_name.get(baseline):
        measured = ", ".join(name for name, found in by_name.items() if found)
        raise InvalidInputError("--baseline", repr(baseline), measured or "none yet", "choose one that was measured")
    lines = [
        f"| variant | layers | steps | seeds | WER % [95 %] | each seed | minus {baseline}, points [95 %] | p | no END "
        "| KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    if study.mos_utterances:
        lines = [lines[0] + " similarity gap | MOS gap |", lines[1] + "---|---|"]
    for name, mine in by_name.items():
        if not mine:
            continue
        seeds = {row["seed"] for row in mine}
        theirs = [row for row in by_name[baseline] if row["seed"] in seeds] or repeated(by_name[baseline], len(mine))
        mine_paired = (
            mine if baseline == TEACHER else [r for r in mine if r["seed"] in {t["seed"] for t in theirs}] or mine
        )
        theirs = repeated(theirs, len(mine_paired))
        wer = compare_wer(errors_of(mine_paired), errors_of(theirs), SAMPLES, 1)
        cells = [
            name,
            "all" if mine[0].get("retained") is None else " ".join(map(str, mine[0]["retained"])),
            str(mine[0].get("steps", "")),
            str(len(mine)),
            shown(bootstrap_corpus_wer(errors_of(mine), SAMPLES, 1), ".1f", 100),
            ", ".join(f"{percent_wer([row]):.1f}" for row in mine),
            "" if name == baseline else shown(wer.points),
            "" if name == baseline else f"{wer.p_value:.4f}",
            f"{100 * sum(r['no_end'] for r in mine) / sum(len(r['counts']) for r in mine):.1f}",
            f"{sum(r['divergence'] for r in mine) / len(mine):.3f}" if "divergence" in mine[0] else "",
        ]
        if study.mos_utterances:
            for key, form in (("similarity", "+.3f"), ("mos", "+.2f")):
                pair = per_utterance(mine_paired, key), per_utterance(theirs, key)
                cells.append(
                    f"{bootstrap_mean(pair[0], SAMPLES, 1).value:.3f}"
                    if name == baseline
                    else shown(paired_bootstrap_mean(*pair, SAMPLES, 1), form)
                )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--baseline", default=TEACHER)
    parser.add_argument("--resume", action="store_true", help="also jobs that a killed process had claimed")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "studies", help="checkpoints; may be deleted")
    options = parser.parse_args()
    for path in options.study:
        if options.command == "run":
            run(Study.read(path), options.scratch.absolute(), options.resume)
        else:
            print(table(Study.read(path), options.baseline))


if __name__ == "__main__":
    main()
