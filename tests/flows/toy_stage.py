"""A stage in miniature: `python toy_stage.py STAGE` writes results of the real types, with numbers made from params.

Environment: TOY_LOG gets a line a start; TOY_FAIL=STAGE ends that stage with a message and TOY_EXIT_CODE;
TOY_KILL_ONCE=STAGE ends its first start by SIGKILL; TOY_SLEEP=STAGE makes it sleep with a child, pids in TOY_LOG.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from slimtts import results as r
from slimtts.workspace import Workspace


def interval(value):
    return r.Interval(value=value, low=value - 0.01, high=value + 0.01)


def subset_data(params, ws):
    for progress in (ws.speaking_progress, ws.encoding_progress):
        progress.mkdir(parents=True, exist_ok=True)
    split = r.SplitSummary(utterances=params["subset_data"]["test_utterances"], hours=0.1, words=50)
    r.SubsetReport(
        strategy="coverage", teacher_hours=10, share=0.04, word_coverage=1.0, splits={"test": split}, dropped={},
        data_sha256=f"data-{params['subset_data']['seed']}",
    ).write(ws.data / "report.json")  # fmt: skip


def score_layers(params, ws):
    layers = [r.LayerScore(layer=i, importance=float(i % 5)) for i in range(12)]
    ws.scoring_progress.mkdir(parents=True, exist_ok=True)
    (ws.scoring_progress / "done").write_text("1")
    r.LayerScores(
        method="search", num_layers=12, utterances=4, reference_wer=None, layers=layers,
        drop_order=list(range(12)), data_sha256="data", teacher_sha256="teacher",
    ).write(ws.scores / "scores.json")  # fmt: skip


def prune_layers(params, ws):
    keep = params["prune_layers"]["keep_layers"]
    r.PrunePlan(
        num_layers=12, retained=list(range(keep)), dropped=list(range(keep, 12)), teacher_parameters=120,
        student_parameters=10 * keep, teacher_sha256="teacher",
    ).write(ws.pruned / "plan.json")  # fmt: skip


def distill_student(params, ws):
    seed = params["distill_student"]["seed"]
    curves = ws.checkpoints / "student" / "curves.jsonl"
    curves.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'{{"name": "student", "step": {step}, "loss": {3 - step}}}\n' for step in range(1, 4)]
    curves.write_text("".join(lines))
    ws.student.mkdir()
    shutil.copy(curves, ws.student / "student.jsonl")
    model = ws.student / "student"
    model.mkdir()
    (model / "weights").write_text(f"{seed}")
    training = r.TrainingReport(
        name="student", steps=3, tokens=10, wall_s=1, final_loss=0.5, weights_sha256=f"student-{seed}"
    )
    r.DistillReport(preset="default", student=training, control=None, device="cpu").write(ws.student / "report.json")


def evaluate_student(params, ws):
    ws.evaluation_progress.mkdir(parents=True, exist_ok=True)
    systems = {}
    for name, layers, rtf in (("teacher", 12, 0.2), ("student", 6, 0.1)):
        speed = r.SpeedResult(
            lm_rtf=rtf,
            end_to_end_rtf=rtf + 0.1,
            tokens_per_s=100,
            latency_p50_s=0.1,
            latency_p95_s=0.2,
            peak_memory_mb=10,
        )
        systems[name] = r.SystemResult(
            name=name, num_layers=layers, parameters=10 * layers, utterances=params["evaluate_student"]["utterances"],
            wer_corpus=interval(0.05), wer_mean=interval(0.05), no_end_rate=0, failures=0, similarity=interval(0.8),
            mos=interval(3.0), mos_predictor="toy", speed=speed,
        )  # fmt: skip
    gap = r.PairedGap(
        system="student", baseline="teacher", wer_points=interval(0.5), p_value=0.4, similarity=interval(0.0),
        mos=interval(0.0),
    )  # fmt: skip
    r.EvaluationReport(
        asr="toy", normalizer="basic", test_set_sha256="test", utterances=params["evaluate_student"]["utterances"],
        reference_wer=0.04, systems=systems, gaps=[gap], machine="toy",
        weights_sha256={"teacher": "teacher", "student": f"student-{params['distill_student']['seed']}"},
    ).write(ws.evaluation / "evaluation.json")  # fmt: skip
    (ws.evaluation / "table.md").write_text("| system | WER |\n")
    (ws.evaluation / "utterances.jsonl").write_text("")
    r.KeptAudio(sentences=[]).write(ws.evaluation / "kept.json")
    (ws.evaluation / "audio").mkdir()
    (ws.evaluation / "audio" / "student-0.wav").write_bytes(b"RIFF")


def register_model(params, ws):
    from slimtts.params import load_params
    from slimtts.promotion import judge

    report = r.EvaluationReport.read(ws.evaluation / "evaluation.json")
    plan = r.PrunePlan.read(ws.pruned / "plan.json")
    student = r.DistillReport.read(ws.student / "report.json").student
    ws.release.mkdir()
    shutil.copytree(ws.student / "student", ws.release / "model")
    lineage = r.Lineage(
        git_sha=os.environ["SLIMTTS_GIT_SHA"], data_sha256="data", teacher_sha256="teacher",
        student_sha256=student.weights_sha256, dvc_revision="revision", dvc_outputs={"data": "1.dir"}, asr="toy",
        normalizer="basic", retained=plan.retained, seed=1, preset="default",
    )  # fmt: skip
    r.Release(
        model_name=params["register_model"]["model_name"],
        lineage=lineage,
        verdict=judge(report, load_params(ws.params).register_model, lineage),
        metrics={"lm_speedup": 2.0},
    ).write(ws.release / "release.json")  # fmt: skip


def main(stage):
    log = Path(os.environ["TOY_LOG"])
    first = stage not in (log.read_text() if log.exists() else "")
    with log.open("a") as stream:
        stream.write(f"{stage}\n")
    if os.environ.get("TOY_FAIL") == stage:
        print(f"slimtts: {stage}: observed a toy; allowed: none; next: grow up", file=sys.stderr)
        sys.exit(int(os.environ.get("TOY_EXIT_CODE", "2")))
    if os.environ.get("TOY_KILL_ONCE") == stage and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("TOY_SLEEP") == stage:
        child = subprocess.Popen(["sleep", "300"])
        with log.open("a") as stream:
            stream.write(f"pids {os.getpid()} {child.pid}\n")
        time.sleep(300)
    globals()[stage](yaml.safe_load(Path("params.yaml").read_text()), Workspace(Path()))


if __name__ == "__main__":
    main(sys.argv[1])
