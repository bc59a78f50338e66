"""What a person reads: table, verdict, lineage."""

from slimtts.evaluation.table import evaluation_table
from slimtts.results import (
    EvaluationReport,
    Interval,
    Lineage,
    ModelOrigin,
    PairedGap,
    Release,
    SpeedResult,
    SplitSummary,
    SubsetReport,
    SystemResult,
    Verdict,
)
from slimtts.stages.model_card import model_card
from slimtts.stages.register_model import headline_metrics


def interval(value):
    return Interval(value=value, low=value - 0.01, high=value + 0.01)


def system(name, layers, wer, rtf):
    speed = SpeedResult(
        lm_rtf=rtf, end_to_end_rtf=rtf + 0.1, tokens_per_s=25 / rtf, latency_p50_s=1, latency_p95_s=2, peak_memory_mb=9
    )
    return SystemResult(
        name=name, num_layers=layers, parameters=layers * 1_000_000, utterances=200, wer_corpus=interval(wer),
        wer_mean=interval(wer), no_end_rate=0.005, failures=1, similarity=interval(0.8), mos=interval(2.5),
        mos_predictor="distillmos", speed=speed,
    )  # fmt: skip


REPORT = EvaluationReport(
    asr="asr", normalizer="basic", test_set_sha256="ab" * 32, utterances=200, reference_wer=0.01,
    systems={"teacher": system("teacher", 12, 0.03, 0.4), "student": system("student", 6, 0.04, 0.2)},
    gaps=[PairedGap(system="student", baseline="teacher", wer_points=interval(1.0), p_value=0.2,
                    similarity=interval(-0.01), mos=interval(0.0))],
    machine="a machine",
)  # fmt: skip
RELEASE = Release(
    model_name="slimtts-nano",
    lineage=Lineage(git_sha="g1", data_sha256="d1", teacher_sha256="t1", student_sha256="s1", dvc_revision="l1",
                    dvc_outputs={}, asr="asr", normalizer="basic", retained=[0, 2, 5, 8, 10, 11], seed=7,
                    preset="default"),
    verdict=Verdict(decision="ACCEPT", reasons=[]),
    metrics=headline_metrics(REPORT),
)  # fmt: skip
DATA = SubsetReport(
    strategy="coverage", teacher_hours=16.7, share=0.045, word_coverage=1.0, dropped={}, data_sha256="d1",
    splits={"train": SplitSummary(utterances=1600, hours=0.75, words=154)},
)  # fmt: skip


ORIGIN = ModelOrigin(
    family="nano", codec="", teacher_source="bundled", teacher_revision="", teacher_sha256="t1", license="Apache-2.0"
)


def test_the_card_names_layers_lineage_verdict_and_data():
    card = model_card(RELEASE, REPORT, DATA, ORIGIN)
    for part in (
        "[0, 2, 5, 8, 10, 11]",
        "| g1 |",
        "| s1 |",
        "Verdict: ACCEPT",
        "0.75 hours: 4.5 % of the teacher's",
        "from_pretrained(FOLDER)",
        "its teacher, Apache-2.0",
        "its teacher, bundled",
        "missed its end in 0.5 %",
    ):
        assert part in card
    assert "commercial" not in card


def test_the_card_forbids_what_the_teachers_licence_forbids():
    card = model_card(RELEASE, REPORT, DATA, ORIGIN.model_copy(update={"license": "CC-BY-NC-4.0"}))
    assert "It forbids commercial use." in card


def test_headline_metrics_are_ratios_of_teacher_and_student():
    assert RELEASE.metrics["lm_speedup"] == 2.0
    assert RELEASE.metrics["parameter_share"] == 0.5
    assert RELEASE.metrics["wer_gap_points_upper"] == 1.01


def test_the_table_shows_the_gap_only_beside_systems_that_were_compared():
    teacher, student = evaluation_table(REPORT).splitlines()[2:4]
    assert teacher.startswith("| teacher | 12 | 12.0 M | 3.0 [2.0, 4.0] |  |")
    assert "| +1.0 [+1.0, +1.0] |" in student
