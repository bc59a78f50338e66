"""Pictures show the numbers they are given: what is drawn is read back from the axes, not from pixels."""

import json
from dataclasses import replace

import pytest

from slimtts.comparison.ranking import compare_runs
from slimtts.errors import InvalidInputError
from slimtts.plots.agreement import agreement_figure
from slimtts.plots.durations import durations_figure
from slimtts.plots.importance import importance_figure
from slimtts.plots.published import SPADE_STUDENTS
from slimtts.plots.students import cost_figure, cost_points, depth_figure, pareto_front, side_by_side
from slimtts.plots.style import SYSTEM_COLOURS, colour_of, save, whiskers
from slimtts.plots.training import read_curves, smooth, training_figure
from slimtts.results import AgreementBin, AgreementReport, Interval, LayerScore, LayerScores, SystemAgreement
from tests.unit.plots.made import around, made_run, said


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def scores(method="wli", values=(0.9, 0.1, 0.3), measured=True):
    layers = [
        LayerScore(layer=i, importance=v, wer_capped=around(v, 0.05) if measured else None)
        for i, v in enumerate(values)
    ]
    return LayerScores(
        method=method, num_layers=len(values), utterances=7, reference_wer=around(0.02) if measured else None,
        layers=layers, drop_order=[1, 2, 0], data_sha256="d", teacher_sha256="t",
    )  # fmt: skip


def test_importance_has_a_bar_a_layer_its_interval_and_the_full_model():
    (axes,) = importance_figure(scores(), dropped=[1]).axes
    bars = {round(b.get_x() + b.get_width() / 2): b.get_height() for b in axes.patches}
    assert bars == pytest.approx({0: 90, 1: 10, 2: 30}), "WER in percent"
    spans = [segment for c in axes.collections for segment in c.get_segments()]
    assert sorted(round(float(a[1]), 6) for a, _ in spans) == [5, 25, 85]
    assert sorted(round(float(b[1]), 6) for _, b in spans) == [15, 35, 95]
    assert sorted(labels(axes)) == ["dropped", "full model", "kept"]
    assert "WER" in axes.get_ylabel() and "%" in axes.get_ylabel()


def test_importance_without_intervals_draws_none_and_a_wide_range_is_logarithmic():
    (axes,) = importance_figure(scores("search", (8.0, 0.1, 0.2), measured=False)).axes
    assert [b.get_height() for b in axes.patches] == [8.0, 0.1, 0.2]
    assert not axes.collections
    assert axes.get_yscale() == "log"
    assert "nats" in axes.get_ylabel()


def write_curves(path, rows):
    path.write_text("".join(json.dumps({"name": "student", **row}) + "\n" for row in rows))
    return path


def test_training_shows_each_term_at_each_step(tmp_path):
    rows = [
        {"step": s, "loss": 3.0 - s, "learning_rate": 0.1, "gradient_norm": 1.0, "skew_kl": 2.0 - s} for s in (0, 1)
    ]
    curves = {
        "student": read_curves(write_curves(tmp_path / "student.jsonl", rows)),
        "control": {"step": [0], "loss": [9]},
    }
    losses, terms = training_figure(curves).axes
    assert labels(losses) == ["student", "control"]
    assert points(losses.lines[0]) == [(0, 3.0), (1, 2.0)]
    assert labels(terms) == ["skew_kl"]
    assert points(terms.lines[0]) == [(0, 2.0), (1, 1.0)]


def test_smoothing_averages_what_came_before():
    assert smooth([1, 3, 5, 7], 2) == [1, 2, 4, 6]
    assert smooth([1, 3], 1) == [1, 3]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"step": 1}', '{"step": 1, "loss": null}'])
def test_a_damaged_curve_names_its_line(tmp_path, line):
    path = tmp_path / "student.jsonl"
    path.write_text(f'{{"name": "student", "step": 0, "loss": 1.0}}\n{line}\n')
    with pytest.raises(InvalidInputError, match="line 2"):
        read_curves(path)


def test_agreement_is_drawn_at_the_middle_of_its_bin_and_not_where_few_utterances_reach():
    bins = [
        AgreementBin(first=0, last=3, utterances=20, top1=around(0.9), kl_nats=around(0.2)),
        AgreementBin(first=4, last=7, utterances=1, top1=around(0.1), kl_nats=around(5.0)),
    ]
    report = AgreementReport(
        utterances=20, systems={"student": SystemAgreement(top1=around(0.8), kl_nats=around(0.3), bins=bins)}
    )
    top1, kl = agreement_figure(report).axes
    assert points(top1.lines[0]) == [(1.5, 90.0)]
    assert points(kl.lines[0]) == [(1.5, 0.2)]
    assert labels(top1) == ["student: 80 %"]
    assert "nats" in kl.get_ylabel()


def test_durations_pair_the_sentences_and_mark_those_that_never_end():
    student = [*said([0, 0], seconds=1.5), *said([0], ended=False, seconds=4.0)]
    pairs, no_end = durations_figure({"teacher": said([0, 0, 0], seconds=2.0), "student": student}).axes
    ended, endless = pairs.lines[1:]
    assert points(ended) == [(2.0, 1.5), (2.0, 1.5)]
    assert points(endless) == [(2.0, 4.0)]
    assert labels(pairs) == ["student ended (2)", "student never ended (1)"]
    assert [round(bar.get_height(), 1) for bar in no_end.patches] == [0.0, 33.3]


def test_depth_shows_ours_and_the_published_gaps_with_their_source():
    students = compare_runs([made_run("deep", 9, [0, 1]), made_run("half", 6, [1, 2])]).students
    (axes,) = depth_figure(students).axes
    ours = next(line for line in axes.lines if line.get_marker() == "o")
    assert points(ours) == [(50.0, 15.0), (75.0, 5.0)], "share of layers, gap in points"
    theirs = [point for line in axes.lines if line.get_marker() in "sD" for point in points(line)]
    assert sorted(theirs) == sorted((s.depth_percent, s.wer_points) for s in SPADE_STUDENTS)
    assert sum("arXiv 2509.20802" in text for text in labels(axes)) == 2


def test_published_students_are_those_of_the_paper():
    assert [(s.teacher, s.depth_percent, s.wer_points) for s in SPADE_STUDENTS] == [
        ("LLaSA-1B", 50.0, 0.72), ("CosyVoice 2", 50.0, 0.43), ("CosyVoice 2", 37.5, 0.79),
    ]  # fmt: skip


def test_students_of_one_depth_stand_side_by_side():
    assert side_by_side([50, 75, 50]) == [48.5, 75.0, 51.5]


def test_pareto_front_holds_what_nothing_beats():
    assert pareto_front([1, 2, 3, 4], [9, 5, 6, 1]) == [0, 1, 3]
    assert pareto_front([1, 1, 2], [5, 4, 4]) == [1], "as dear with fewer errors; dearer with as many"
    assert pareto_front([1, 1], [2, 2]) == [0]
    assert pareto_front([], []) == []


def test_cost_shows_every_student_and_the_teacher_and_joins_the_front():
    runs = [made_run("slow", 6, [1, 1], rtf=0.15, memory=700), made_run("fast", 4, [1, 1], rtf=0.1, memory=600)]
    teacher = runs[0].report.systems["teacher"]
    shown = cost_points(compare_runs(runs).students, teacher)
    assert [(p.name, p.wer.value, p.lm_rtf_percent) for p in shown] == [
        ("fast", 10.0, 50.0), ("slow", 10.0, pytest.approx(75.0)), ("teacher", 0.0, 100.0),
    ]  # fmt: skip
    rtf, memory = cost_figure(shown).axes
    assert points(rtf.lines[0]) == [(50.0, 10.0), (100.0, 0.0)], "the slow one is beaten by the fast one"
    assert points(memory.lines[0]) == [(40.0, 10.0), (120.0, 0.0)]
    assert memory.get_xlabel() == "weights, MB"
    _, memory = cost_figure([replace(point, weight_mb=None) for point in shown]).axes
    assert points(memory.lines[0]) == [(600.0, 10.0), (900.0, 0.0)]
    assert memory.get_xlabel() == "peak of the process, MB"


def test_a_system_has_one_colour_and_variants_have_different_ones():
    systems = ["teacher", "student", "student-int8", "student-fp8"]
    assert len({colour_of(name, systems) for name in systems}) == 4
    assert colour_of("student", systems) == SYSTEM_COLOURS["student"]


def test_a_bound_on_the_wrong_side_draws_no_whisker():
    assert whiskers([Interval(value=1, low=0.5, high=0.9)], 10) == [[5], [0]]


def test_equal_figures_give_equal_bytes(tmp_path):
    first, second = (save(importance_figure(scores()), tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert first == second
    assert first.startswith(b"\x89PNG")
