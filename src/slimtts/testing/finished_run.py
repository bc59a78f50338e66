"""A finished run in small: real result files, tones for speech, and a sentence that would break a careless page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile

from slimtts import results as r
from slimtts.evaluation.word_errors import count_word_errors
from slimtts.workspace import Workspace

RATE_HZ = 16_000
LONG_S, SHORT_S = 4.0, 1.5  # of the first sentence, and of the others
SYSTEMS = {"teacher": 12, "pruned": 6, "student": 6, "control": 12}
HOSTILE = "<script>document.title = 'owned'</script> & <b>bold</b>"
# id, voice, text, chosen; then what each system was heard to say where that is not the text.
SENTENCES: tuple[tuple[str, str, str, str, dict[str, str]], ...] = (
    ("u0", "anna", "the green tiger sleeps", "random", {"pruned": "the the green ladder"}),
    ("u1", "bert", "nora opened the market", "random", {"student": "nora opened a market", "pruned": ""}),
    ("u2", "anna", HOSTILE, "random", {"student": "script bold <i>x</i>"}),
    ("u3", "bert", "please clean the office at four", "random", {}),
    ("u4", "anna", "six camels wait", "worst", {"student": "sick camel weights a", "teacher": "six camel wait"}),
    ("u5", "bert", "they carried my ladder", "worst", {"student": "they carried my my ladder"}),
)
MISSING = ("pruned", "u3")  # no file
SILENT = ("pruned", "u1")  # a file without samples


def write_finished_run(root: Path, params: Path) -> Path:
    """Makes the workspace `root` with the knobs of `params`; gives it."""
    workspace = Workspace(root)
    workspace.evaluation.mkdir(parents=True)
    workspace.params.write_text(params.read_text())
    r.PrunePlan(
        num_layers=12, retained=[0, 2, 4, 6, 8, 11], dropped=[1, 3, 5, 7, 9, 10], teacher_parameters=8_000_000,
        student_parameters=4_600_000, teacher_sha256="teacher",
    ).write(workspace.pruned / "plan.json")  # fmt: skip
    report = _evaluation()
    report.write(workspace.evaluation / "evaluation.json")
    _write_sentences(workspace.evaluation)
    lineage = r.Lineage(
        git_sha="code", data_sha256="data", teacher_sha256="teacher", student_sha256="student", dvc_revision="dvc",
        dvc_outputs={}, asr="toy", normalizer="basic", retained=[0, 2, 4, 6, 8, 11], seed=1, preset="default",
    )  # fmt: skip
    verdict = r.Verdict(decision="ACCEPT", reasons=["The gap is 0.5 points; at most 3 < is allowed."])
    r.Release(model_name="toy", lineage=lineage, verdict=verdict, metrics={}).write(workspace.release / "release.json")
    return root


def _write_sentences(evaluation: Path) -> None:
    rows, kept = [], []
    for place, (name, voice, text, chosen, heard) in enumerate(SENTENCES):
        kept.append(
            r.KeptSentence(
                id=name,
                text=text,
                voice=voice,
                prompt_text="the prompt",
                original_transcript=text,
                chosen="worst" if chosen == "worst" else "random",
            )
        )
        for column, system in enumerate(("prompt", "original", *SYSTEMS)):
            said_s = (LONG_S if place == 0 else SHORT_S) + 0.05 * column
            if (system, name) != MISSING:
                length_s = 0.0 if (system, name) == SILENT else said_s
                _write_tone(evaluation / "audio" / system / f"{name}.wav", 200 + 60 * column + 20 * place, length_s)
            if system in SYSTEMS:
                transcript = heard.get(system, text)
                errors = asdict(count_word_errors(text, transcript, "basic"))
                rows.append(
                    {
                        "system": system, "id": name, "text": text, "transcript": transcript, "errors": errors,
                        "ended": not (system == "pruned" and place == 0), "seconds": said_s,
                        "similarity": 0.8 - 0.01 * place, "mos": None if place > 3 else 3.0 + 0.1 * place,
                    }
                )  # fmt: skip
    (evaluation / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    r.KeptAudio(sentences=kept).write(evaluation / "kept.json")


def _write_tone(path: Path, frequency_hz: float, length_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * frequency_hz * seconds), RATE_HZ, subtype="PCM_16")


def _evaluation() -> r.EvaluationReport:
    systems = {}
    for name, layers in SYSTEMS.items():
        fast = layers / 60
        systems[name] = r.SystemResult(
            name=name, num_layers=layers, parameters=700_000 * layers, utterances=100, wer_corpus=_around(0.02),
            wer_mean=_around(0.02), no_end_rate=0.0, failures=0, similarity=_around(0.8), mos=_around(3.0),
            mos_predictor="toy", speed=r.SpeedResult(
                lm_rtf=fast, end_to_end_rtf=fast + 0.01, tokens_per_s=100, latency_p50_s=0.1, latency_p95_s=0.2,
                peak_memory_mb=100.0 * layers,
            ),
        )  # fmt: skip
    gaps = [
        r.PairedGap(
            system=name,
            baseline="teacher",
            wer_points=_around(0.5),
            p_value=0.2,
            similarity=_around(0.0),
            mos=_around(0.0),
        )
        for name in SYSTEMS
        if name != "teacher"
    ]
    return r.EvaluationReport(
        asr="toy <asr>", normalizer="basic", test_set_sha256="7e57" * 16, utterances=100, reference_wer=0.01,
        systems=systems, gaps=gaps, machine="toy", weights_sha256={name: f"{name}-weights" for name in SYSTEMS},
    )  # fmt: skip


def _around(value: float) -> r.Interval:
    return r.Interval(value=value, low=value - 0.01, high=value + 0.01)
