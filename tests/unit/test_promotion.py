"""The gate: each verdict at its limit, and no number that is none, stale or of something else gets through."""

import itertools
import json
import math
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from slimtts import promotion
from slimtts.params import RegisterModelParams
from slimtts.promotion import Production, basis_of
from slimtts.results import EvaluationReport, Interval, Lineage, PairedGap, SpeedResult, SystemResult

GATE = RegisterModelParams(
    model_name="tiny", promote=True, approval="none", approval_hours=1.0, min_utterances=100,
    max_wer_gap_upper_points=3.0, max_wer_points_over_production=None, max_similarity_drop=0.03,
    max_mos_drop_upper=0.15, max_no_end_rate=0.02, min_speedup=1.2,
)  # fmt: skip
TEST_SET, OTHER = "0" * 64, "f" * 64
LINEAGE = Lineage(
    git_sha="g", data_sha256="d", teacher_sha256="a" * 64, student_sha256="b" * 64, dvc_revision="r", dvc_outputs={},
    asr="asr", normalizer="basic", retained=[0, 3], seed=1, preset="default",
)  # fmt: skip
judge = partial(promotion.judge, lineage=LINEAGE)


def interval(value, high=None):
    return Interval(value=value, low=value, high=value if high is None else high)


def around(value):
    return Interval(value=value, low=value - 0.01, high=value + 0.01)


def system(name, wer=0.10, no_end_rate=0.0, lm_rtf=0.5, utterances=500, similarity=0.8):
    return SystemResult(
        name=name, num_layers=12, parameters=9_000_000, utterances=utterances, wer_corpus=interval(wer),
        wer_mean=interval(wer), no_end_rate=no_end_rate, failures=0, similarity=around(similarity),
        mos=around(3.0), mos_predictor="distillmos 0.9.0",
        speed=SpeedResult(
            lm_rtf=lm_rtf, end_to_end_rtf=lm_rtf, tokens_per_s=50, latency_p50_s=1, latency_p95_s=1, peak_memory_mb=1
        ),
    )  # fmt: skip


def report(
    teacher=None, student=None, gap_high=1.0, similarity_gap=-0.01, mos_low=-0.1, utterances=500, reference_wer=0.05,
    **other,
):  # fmt: skip
    teacher = teacher or system("teacher", lm_rtf=0.5)
    student = student or system("student", lm_rtf=0.25)
    gap = PairedGap(
        system="student", baseline="teacher", wer_points=interval(0.0, gap_high), p_value=0.5,
        similarity=interval(similarity_gap), mos=Interval(value=0.0, low=mos_low, high=0.1),
    )  # fmt: skip
    fields = {
        "asr": "asr", "normalizer": "basic", "test_set_sha256": TEST_SET, "utterances": utterances,
        "reference_wer": reference_wer, "other_voice_similarity": 0.5,
        "systems": {"teacher": teacher, "student": student}, "gaps": [gap],
        "machine": "here", "weights_sha256": {"teacher": "a" * 64, "student": "b" * 64},
    }  # fmt: skip
    return EvaluationReport(**{**fields, **other})


def test_a_good_student_is_accepted_with_every_limit_named():
    verdict = judge(report(), GATE)
    assert verdict.decision == "ACCEPT"
    assert verdict.reasons == [
        "The upper 95 % bound of the WER gap is 1 points; at most 3 is allowed.",
        "The similarity to the prompt drops by 0.01 of cosine; at most 0.03 is allowed.",
        "The upper 95 % bound of the MOS drop is 0.1 of 5; at most 0.15 is allowed.",
        "The share of utterances that never end is 0 of all; at most 0.02 is allowed.",
        "The student's language model is 2 times faster; at least 1.2 is needed.",
        "The recogniser got 5 % of the originals' words wrong; at most 10 % is allowed.",
        "The recogniser got 10 % of the teacher's words wrong; at most 20 % is allowed.",
        "The teacher's speech is 0.3 of cosine nearer to its prompt's voice than to other voices; "
        "at least 0.05 is needed.",
    ]


AT_THE_LIMIT = {
    "gap_high": 3.0, "similarity_gap": -0.03, "mos_low": -0.15,
    "student": system("student", no_end_rate=0.02, lm_rtf=0.5),
}  # fmt: skip


def test_the_limits_themselves_are_allowed():
    teacher = system("teacher", lm_rtf=0.6)
    assert judge(report(teacher=teacher, **AT_THE_LIMIT), GATE).decision == "ACCEPT"


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"gap_high": 3.01}, "The upper 95 % bound of the WER gap is 3.01 points; at most 3 is allowed."),
        ({"similarity_gap": -0.031}, "The similarity to the prompt drops by 0.031 of cosine; at most 0.03 is allowed."),
        ({"mos_low": -0.16}, "The upper 95 % bound of the MOS drop is 0.16 of 5; at most 0.15 is allowed."),
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
    everything = report(student=student, gap_high=90, similarity_gap=-0.5, mos_low=-1)
    assert len(judge(everything, GATE).reasons) == 5


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
        ({"test_set_sha256": ""}, "does not name its test set"),
        ({"asr": ""}, "does not name its recogniser"),
        ({"normalizer": ""}, "does not name its normaliser"),
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
    "lower bound of the MOS gap": lambda x: {"mos_low": x},
    "similarity to other voices": lambda x: {"other_voice_similarity": x},
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


USELESS_JUDGES = {
    "hears nothing: random weights": (
        {"reference_wer": 1.0, "systems": {name: system(name, wer=1.0) for name in ("teacher", "student")}},
        [
            "The recogniser got 100 % of the originals' words wrong; at most 10 % is allowed.",
            "The recogniser got 100 % of the teacher's words wrong; at most 20 % is allowed.",
        ],
    ),
    "hears the originals badly": (
        {"reference_wer": 0.101},
        ["The recogniser got 10.1 % of the originals' words wrong; at most 10 % is allowed."],
    ),
    "hears the teacher badly": (
        {"reference_wer": None, "teacher": system("teacher", wer=0.201)},
        ["The recogniser got 20.1 % of the teacher's words wrong; at most 20 % is allowed."],
    ),
    "counts characters": (
        {"reference_wer": 0.5, "metric": "CER", "language": "zh"},
        ["The recogniser got 50 % of the originals' characters wrong; at most 10 % is allowed."],
    ),
    "takes all voices for one": (
        {"other_voice_similarity": 0.76},
        [
            "The teacher's speech is 0.04 of cosine nearer to its prompt's voice than to other voices; "
            "at least 0.05 is needed."
        ],
    ),
    "gives one cosine": (
        {"teacher": system("teacher").model_copy(update={"similarity": interval(0.8)})},
        ["The similarity was 0.8 for every sentence of the teacher: it judges nothing."],
    ),
    "gives one MOS": (
        {"teacher": system("teacher").model_copy(update={"mos": interval(3.0)})},
        ["The MOS was 3 for every sentence of the teacher: it judges nothing."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", USELESS_JUDGES)
def test_a_judge_that_cannot_judge_makes_it_incomplete(case):
    observed, reasons = USELESS_JUDGES[case]
    verdict = judge(report(**observed), GATE)
    assert (verdict.decision, verdict.reasons) == ("INCOMPLETE", reasons)


def test_what_judges_must_reach_is_a_limit_of_the_gate():
    at_the_limit = {"reference_wer": 0.10, "teacher": system("teacher", wer=0.20), "other_voice_similarity": 0.75}
    assert judge(report(**at_the_limit), GATE).decision == "ACCEPT"
    lax = GATE.model_copy(update={"max_reference_wer": 0.4, "max_teacher_wer": 0.4, "min_voice_contrast": 0.0})
    worse = {"reference_wer": 0.3, "teacher": system("teacher", wer=0.3), "other_voice_similarity": 0.8}
    student = system("student", wer=0.3, lm_rtf=0.25)
    assert judge(report(**worse, student=student), GATE).decision == "INCOMPLETE"
    assert judge(report(**worse, student=student), lax).decision == "ACCEPT"
    any_voice = GATE.model_copy(update={"min_voice_contrast": None})
    assert judge(report(other_voice_similarity=0.9), any_voice).decision == "ACCEPT"
    assert judge(report(other_voice_similarity=None), GATE).decision == "ACCEPT", "one voice has no other"


def test_nothing_that_was_timed_could_be_heard():
    # Seconds of work over the smallest audio that is divided by: no RTF, although a finite number.
    verdict = judge(report(teacher=system("teacher", lm_rtf=0.1 / 1e-9)), GATE)
    assert verdict.decision == "INCOMPLETE" and "teacher's LM-RTF was" in verdict.reasons[0]


def test_layers_that_only_their_numbers_chose_make_it_incomplete():
    verdict = promotion.judge(report(), GATE, LINEAGE.model_copy(update={"tied_layers": [2, 5]}))
    assert verdict.decision == "INCOMPLETE"
    assert verdict.reasons == [
        "Layers [2, 5] have equal scores at the cut, so their numbers chose which of them stayed; "
        "score on more utterances, or name the layers in prune_layers.retained."
    ]


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


def _leaves(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, (*path, place))
    else:
        yield path


GOOD = report().model_dump()
FIELDS = sorted(_leaves(GOOD), key=str)
# Where it ran is no evidence, and without the others a report is an older one, of what was then the only kind; what is
# None was not measured.
BESIDE = ("machine", "benchmark", "language", "metric", "similarity_predictor", "other_voice_similarity")
BAD = ["nan", "inf", "-inf", None]


def _at(values, path):
    for key in path[:-1]:
        values = values[key]
    return values, path[-1]


def _is_judged(path):
    holder, key = _at(GOOD, path)
    return path[0] not in BESIDE and holder[key] is not None


JUDGED = [path for path in FIELDS if _is_judged(path)]


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(JUDGED), bad=st.sampled_from(BAD))
def test_no_field_that_is_missing_or_not_finite_is_ever_accepted(path, bad):
    values = json.loads(report().model_dump_json())
    holder, key = _at(values, path)
    if bad is None or not isinstance(holder[key], float):
        del holder[key]  # of a list: the whole entry
    else:
        holder[key] = bad
    try:
        changed = EvaluationReport.model_validate(values)
    except ValidationError:
        return  # a report like this cannot be read at all
    assert judge(changed, GATE).decision != "ACCEPT"


def test_the_report_that_the_property_breaks_is_a_good_one():
    assert judge(EvaluationReport.model_validate(json.loads(report().model_dump_json())), GATE).decision == "ACCEPT"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"weights_sha256": {"teacher": OTHER, "student": "b" * 64}}, "teacher's weights"),
        ({"weights_sha256": {"teacher": "a" * 64, "student": OTHER}}, "student's weights"),
        ({"weights_sha256": {}}, "teacher's weights of the evaluation: not named"),
        ({"asr": "another"}, "recogniser of the evaluation: another; of the release: asr"),
        ({"normalizer": "seed_tts_eval"}, "normaliser"),
    ],
)
def test_numbers_of_other_models_are_stale(other, what):
    verdict = judge(report(**other), GATE)
    assert verdict.decision == "INCOMPLETE"
    assert verdict.reasons[0].startswith("Stale numbers: ") and what in verdict.reasons[0]


def test_two_mos_predictors_cannot_be_compared():
    student = system("student", lm_rtf=0.25).model_copy(update={"mos_predictor": "another"})
    assert judge(report(student=student), GATE).decision == "INCOMPLETE"


def production(**changes):
    return Production("7", basis_of(report()).model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"test_set_sha256": OTHER},
            "The test set is 000000000000; version 7 in production was judged on ffffffffffff.",
        ),
        ({"asr": "former"}, "The recogniser is asr; version 7 in production was judged on former."),
        ({"normalizer": "former"}, "The normaliser is basic"),
        ({"benchmark": "seed-tts-eval"}, "The benchmark is nano"),
        ({"language": "zh"}, "The language is en"),
        ({"metric": "CER"}, "The metric is WER"),
        ({"mos_predictor": "utmos"}, "The MOS predictor is"),
        ({"teacher_sha256": OTHER}, "The teacher is aaaaaaaaaaaa"),
        ({"teacher_wer": 0.115}, "the same teacher on the same sentences differs by 1.5 points of WER"),
        ({"teacher_wer": math.nan}, "differs by nan points"),
    ],
)
def test_another_basis_than_productions_is_incomplete_until_a_person_accepts_it(changes, reason):
    verdict = judge(report(), GATE, production=production(**changes))
    assert verdict.decision == "INCOMPLETE"
    assert len(verdict.reasons) == 1 and reason in verdict.reasons[0]
    accepted = judge(report(), GATE, production=production(**changes), accept_new_basis="harder sentences")
    assert accepted.decision == "ACCEPT"
    assert reason in accepted.reasons[-1], "what was accepted is told"
    still_bad = judge(report(gap_high=9.0), GATE, production=production(**changes), accept_new_basis="harder")
    assert still_bad.decision == "REGRESSION", "it opens no other door"


def test_production_of_which_nothing_is_known_is_no_baseline():
    verdict = judge(report(), GATE, production=Production("7", None))
    assert verdict.decision == "INCOMPLETE"
    assert "Nothing is recorded of what version 7" in verdict.reasons[0]


def test_the_same_basis_is_compared_and_small_drift_is_allowed():
    assert judge(report(), GATE, production=production(teacher_wer=0.109)).decision == "ACCEPT"
    strict = GATE.model_copy(update={"max_wer_points_over_production": 0.5})
    assert judge(report(), strict, production=production(student_wer=0.096)).decision == "ACCEPT"
    verdict = judge(report(), strict, production=production(student_wer=0.09))
    assert (verdict.decision, verdict.reasons) == (
        "REGRESSION",
        ["The student's WER is 1 points above that of version 7 in production; at most 0.5 is allowed."],
    )
    assert judge(report(), GATE, production=production(student_wer=0.0)).decision == "ACCEPT", "no limit, no comparison"
    assert judge(report(), strict, production=production(student_wer=math.nan)).decision == "REGRESSION"
