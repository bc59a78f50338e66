"""The gate: each verdict at its limit, no number that is none gets through; the history: nothing lost or doubled."""

import itertools
import math
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from slimtts.errors import InvalidInputError
from slimtts.params import RegisterModelParams
from slimtts.promotion import PromotionEvent, judge, read_history, record_event
from slimtts.results import EvaluationReport, Interval, PairedGap, SpeedResult, SystemResult

GATE = RegisterModelParams(
    model_name="tiny", promote=True, min_utterances=100, max_wer_gap_upper_points=3.0, max_similarity_drop=0.03,
    max_no_end_rate=0.02, min_speedup=1.2,
)  # fmt: skip


def interval(value, high=None):
    return Interval(value=value, low=value, high=value if high is None else high)


def system(name, wer=0.10, no_end_rate=0.0, lm_rtf=0.5, utterances=500, similarity=0.8):
    return SystemResult(
        name=name, num_layers=12, parameters=9_000_000, utterances=utterances, wer_corpus=interval(wer),
        wer_mean=interval(wer), no_end_rate=no_end_rate, failures=0, similarity=interval(similarity),
        mos=interval(3.0), mos_predictor="distillmos 0.9.0",
        speed=SpeedResult(
            lm_rtf=lm_rtf, end_to_end_rtf=lm_rtf, tokens_per_s=50, latency_p50_s=1, latency_p95_s=1, peak_memory_mb=1
        ),
    )  # fmt: skip


def report(teacher=None, student=None, gap_high=1.0, similarity_gap=-0.01, utterances=500, reference_wer=0.05, **other):
    teacher = teacher or system("teacher", lm_rtf=0.5)
    student = student or system("student", lm_rtf=0.25)
    gap = PairedGap(
        system="student", baseline="teacher", wer_points=interval(0.0, gap_high), p_value=0.5,
        similarity=interval(similarity_gap), mos=interval(0.0),
    )  # fmt: skip
    fields = {
        "asr": "asr", "normalizer": "basic", "test_set_sha256": "0" * 64, "utterances": utterances,
        "reference_wer": reference_wer, "systems": {"teacher": teacher, "student": student}, "gaps": [gap],
        "machine": "here",
    }  # fmt: skip
    return EvaluationReport(**{**fields, **other})


def test_a_good_student_is_accepted_with_every_limit_named():
    verdict = judge(report(), GATE)
    assert verdict.decision == "ACCEPT"
    assert verdict.reasons == [
        "The upper 95 % bound of the WER gap is 1 points; at most 3 is allowed.",
        "The similarity to the prompt drops by 0.01 of cosine; at most 0.03 is allowed.",
        "The share of utterances that never end is 0 of all; at most 0.02 is allowed.",
        "The student's language model is 2 times faster; at least 1.2 is needed.",
    ]


AT_THE_LIMIT = {"gap_high": 3.0, "similarity_gap": -0.03, "student": system("student", no_end_rate=0.02, lm_rtf=0.5)}


def test_the_limits_themselves_are_allowed():
    teacher = system("teacher", lm_rtf=0.6)
    assert judge(report(teacher=teacher, **AT_THE_LIMIT), GATE).decision == "ACCEPT"


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"gap_high": 3.01}, "The upper 95 % bound of the WER gap is 3.01 points; at most 3 is allowed."),
        ({"similarity_gap": -0.031}, "The similarity to the prompt drops by 0.031 of cosine; at most 0.03 is allowed."),
        (
            {"student": system("student", no_end_rate=0.022, lm_rtf=0.25)},
            "The share of utterances that never end is 0.022 of all; at most 0.02 is allowed.",
        ),
        (
            {"student": system("student", lm_rtf=0.45)},
            "The student's language model is 1.111 times faster; at least 1.2 is needed.",
        ),
    ],
)
def test_each_broken_limit_is_a_regression(worse, reason):
    verdict = judge(report(**worse), GATE)
    assert (verdict.decision, verdict.reasons) == ("REGRESSION", [reason])


def test_all_broken_limits_are_told_together():
    student = system("student", no_end_rate=1.0, lm_rtf=5.0)
    assert len(judge(report(student=student, gap_high=90, similarity_gap=-0.5), GATE).reasons) == 4


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ({"systems": {"student": system("student")}}, "holds no teacher; observed systems: student"),
        ({"systems": {"teacher": system("teacher")}}, "holds no student; observed systems: teacher"),
        ({"systems": {}}, "observed systems: none"),
        ({"gaps": []}, "not compared with the teacher; observed comparisons: none"),
        ({"student": system("student", utterances=499)}, "same 500 utterances; had: teacher 500, student 499"),
        (
            {
                "systems": {
                    name: system(name, utterances=count, lm_rtf=0.2)
                    for name, count in (("teacher", 500), ("student", 500), ("pruned", 450))
                }
            },
            "pruned 450",
        ),
        (
            {"utterances": 99, "systems": {n: system(n, utterances=99) for n in ("teacher", "student")}},
            "Only 99 utterances were judged; at least 100 are needed",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_makes_it_incomplete(missing, reason):
    verdict = judge(report(**missing), GATE)
    assert verdict.decision == "INCOMPLETE"
    assert any(reason in r for r in verdict.reasons), verdict.reasons


NUMBERS = {
    "WER of the originals": lambda x: {"reference_wer": x},
    "teacher's WER": lambda x: {"teacher": system("teacher", wer=x)},
    "student's WER": lambda x: {"student": system("student", wer=x, lm_rtf=0.25)},
    "upper bound of the WER gap": lambda x: {"gap_high": x},
    "similarity gap": lambda x: {"similarity_gap": x},
    "student's no-END rate": lambda x: {"student": system("student", no_end_rate=x, lm_rtf=0.25)},
    "teacher's LM-RTF": lambda x: {"teacher": system("teacher", lm_rtf=x)},
    "student's LM-RTF": lambda x: {"student": system("student", lm_rtf=x)},
}


@pytest.mark.parametrize(("name", "bad"), itertools.product(NUMBERS, [math.nan, math.inf, -math.inf]))
def test_no_number_may_be_missing(name, bad, tmp_path):
    report(**NUMBERS[name](bad)).write(tmp_path / "evaluation.json")
    verdict = judge(EvaluationReport.read(tmp_path / "evaluation.json"), GATE)
    assert verdict.decision == "INCOMPLETE"
    assert len(verdict.reasons) == 1 and f"The {name}" in verdict.reasons[0] and f"was {bad}" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("name", "bad"),
    [("student's LM-RTF", 0.0), ("teacher's LM-RTF", 0.0), ("student's no-END rate", -0.1), ("student's WER", -0.1)],
)
def test_impossible_numbers_make_it_incomplete(name, bad):
    assert judge(report(**NUMBERS[name](bad)), GATE).decision == "INCOMPLETE"


def test_too_good_is_anomalous():
    verdict = judge(report(gap_high=-10.5), GATE)
    assert verdict.decision == "ANOMALOUS"
    assert "by at least 10.5 points of WER; more than 10 is not believed" in verdict.reasons[0]
    verdict = judge(report(student=system("student", wer=0.02, lm_rtf=0.25)), GATE)
    assert verdict.decision == "ANOMALOUS"
    assert "3 points below that of the originals; more than 2" in verdict.reasons[0]


def test_good_is_not_anomalous():
    assert judge(report(gap_high=-9.9), GATE).decision == "ACCEPT"
    assert judge(report(student=system("student", wer=0.031, lm_rtf=0.25)), GATE).decision == "ACCEPT"
    flawless = {n: system(n, wer=0.0, lm_rtf=r) for n, r in (("teacher", 0.5), ("student", 0.25))}
    assert (
        judge(report(systems=flawless, similarity_gap=0.0, gap_high=0.0, reference_wer=0.0), GATE).decision == "ACCEPT"
    )


def test_incomplete_decides_before_regression_and_that_before_anomalous():
    slow_and_too_good = {"student": system("student", lm_rtf=5.0), "gap_high": -50.0}
    assert judge(report(**slow_and_too_good), GATE).decision == "REGRESSION"
    assert judge(report(**slow_and_too_good, reference_wer=math.nan), GATE).decision == "INCOMPLETE"


def event(version="1", action="promoted", evaluation="a", model="tiny", minute=0):
    return PromotionEvent(
        model_name=model, version=version, evaluation_sha256=evaluation * 64, decision="ACCEPT", action=action,
        former_version=None, recorded_at=datetime(2025, 1, 1, 12, minute, tzinfo=UTC),
    )  # fmt: skip


def test_history_keeps_order_and_content(tmp_path):
    history = tmp_path / "runs" / "history.jsonl"
    assert read_history(history) == []
    events = [event("1"), event("2", "refused", "b"), event("3", evaluation="c")]
    assert [record_event(history, e) for e in events] == [True, True, True]
    assert read_history(history) == events
    assert len(history.read_text().splitlines()) == 3


def test_a_retry_is_one_event(tmp_path):
    history = tmp_path / "history.jsonl"
    assert record_event(history, event(minute=0))
    assert not record_event(history, event(minute=5))
    assert record_event(history, event("2", "refused", "b"))
    assert not record_event(history, event(minute=6))
    assert not record_event(history, event("2", "refused", "b", minute=6))
    assert read_history(history) == [event(minute=0), event("2", "refused", "b")]
    # Another evaluation of the same version, and another model, are other events.
    assert record_event(history, event(evaluation="d"))
    assert record_event(history, event(model="other"))
    assert len(read_history(history)) == 4


def test_every_return_to_production_is_an_event(tmp_path):
    history = tmp_path / "history.jsonl"
    events = [
        event("1"), event("2", evaluation="b"), event("1", "rolled_back"), event("2", evaluation="b", minute=1),
        event("1", "rolled_back", minute=2),
    ]  # fmt: skip
    assert all(record_event(history, e) for e in events)
    assert not record_event(history, event("1", "rolled_back", minute=3))
    assert read_history(history) == events


def test_a_foreign_line_is_named_and_nothing_is_written(tmp_path):
    history = tmp_path / "history.jsonl"
    record_event(history, event())
    history.write_text(history.read_text() + '{"version": 2}\n')
    before = history.read_text()
    with pytest.raises(InvalidInputError, match=r"history\.jsonl line 2"):
        record_event(history, event("2"))
    assert history.read_text() == before


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from slimtts.promotion import PromotionEvent, record_event

name, history = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for number in range(25):
    record_event(history, PromotionEvent(
        model_name=name, version=str(number), evaluation_sha256="a" * 64, decision="ACCEPT", action="promoted",
        former_version=None, recorded_at=datetime.now(UTC)))
"""


def test_two_promoters_at_once_lose_nothing(tmp_path):
    history = tmp_path / "history.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name, str(history)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("left", "right")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    events = read_history(history)
    for name in ("left", "right"):
        assert [e.version for e in events if e.model_name == name] == [str(n) for n in range(25)]
    assert not [p for p in tmp_path.iterdir() if p.name not in ("history.jsonl", "history.jsonl.lock")]
