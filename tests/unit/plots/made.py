"""Results of a made run, with numbers that the tests know."""

from slimtts.comparison.runs import FinishedRun, Sentence
from slimtts.evaluation.word_errors import WordErrors
from slimtts.results import EvaluationReport, Interval, PairedGap, PrunePlan, SpeedResult, SystemResult


def around(value, spread=0.01):
    return Interval(value=value, low=value - spread, high=value + spread)


def made_system(name, layers, wer, rtf=0.1, memory=500.0, utterances=4, weights=None):
    speed = SpeedResult(
        lm_rtf=rtf, end_to_end_rtf=rtf + 0.01, tokens_per_s=100, latency_p50_s=0.1, latency_p95_s=0.2,
        peak_memory_mb=memory,
    )  # fmt: skip
    return SystemResult(
        name=name, num_layers=layers, parameters=10 * layers, utterances=utterances, wer_corpus=around(wer),
        wer_mean=around(wer), no_end_rate=0, failures=0, similarity=around(0.8), mos=around(3.0), mos_predictor="toy",
        speed=speed, weight_mb=10.0 * layers if weights is None else weights,
    )  # fmt: skip


def said(errors, ended=True, seconds=2.0, words=10):
    """Sentences with so many substituted words each."""
    return [
        Sentence(f"s{i}", WordErrors(words - wrong, wrong, 0, 0), ended, seconds, 0.8, 3.0 if i < 2 else None)
        for i, wrong in enumerate(errors)
    ]


def made_run(name, layers, errors, rtf=0.1, memory=500.0, teacher_errors=None, knobs=None, **report):
    """A run whose student says `errors` wrong, sentence by sentence; its teacher nothing."""
    teacher_errors = teacher_errors or [0] * len(errors)
    wer = sum(errors) / (10 * len(errors))
    systems = {
        "teacher": made_system("teacher", 12, 0.0, rtf=0.2, memory=900.0, utterances=len(errors)),
        "student": made_system("student", layers, wer, rtf, memory, utterances=len(errors)),
    }
    gap = PairedGap(
        system="student", baseline="teacher", wer_points=around(100 * wer, 1.0), p_value=0.4, similarity=around(0.0),
        mos=around(0.0),
    )  # fmt: skip
    basis = {"asr": "toy", "normalizer": "basic", "test_set_sha256": "t" * 64, "machine": "toy"} | report
    plan = PrunePlan(
        num_layers=12, retained=list(range(layers)), dropped=list(range(layers, 12)), teacher_parameters=120,
        student_parameters=10 * layers, teacher_sha256="a" * 64,
    )  # fmt: skip
    return FinishedRun(
        name, plan, EvaluationReport(utterances=len(errors), reference_wer=0.0, systems=systems, gaps=[gap], **basis),
        {"teacher": said(teacher_errors), "student": said(errors)}, knobs or {},
    )  # fmt: skip
