"""Students side by side: who stands where, what is refused, and the tests by hand."""

from dataclasses import replace

import pytest

from slimtts.comparison.ranking import compare_runs, holm
from slimtts.comparison.table import as_table, comparison_text
from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_errors import WordErrors
from slimtts.results import PairedGap
from tests.unit.plots.made import made_run, made_system, said

GOOD, BAD = [0] * 40, [3] * 40
NEARLY = [1, 0] * 20


def standings(*runs):
    return {student.name: student.standing for student in compare_runs(runs).students}


def test_best_is_by_wer_among_those_of_equal_depth():
    assert standings(made_run("good", 6, NEARLY), made_run("bad", 6, BAD), made_run("deep", 9, GOOD)) == {
        "good": "best", "bad": "worse than the best", "deep": "alone at its depth",
    }  # fmt: skip


def test_a_difference_of_chance_makes_nobody_worse():
    close = [1, 0, 0, 1] * 10
    assert standings(made_run("a", 6, NEARLY), made_run("b", 6, [*close[:-1], 2])) == {
        "a": "best", "b": "not told apart from the best",
    }  # fmt: skip


def test_students_are_sorted_by_depth_then_wer_whatever_the_order_of_runs():
    runs = [made_run("deep", 9, GOOD), made_run("bad", 6, BAD), made_run("good", 6, NEARLY)]
    for order in (runs, runs[::-1]):
        assert [s.name for s in compare_runs(order).students] == ["good", "bad", "deep"]


def test_pairs_are_tested_on_the_same_sentences():
    (test,) = compare_runs([made_run("good", 6, GOOD), made_run("bad", 6, BAD)]).tests
    assert (test.a, test.b) == ("good", "bad")
    assert test.wer_points.value == pytest.approx(-30)
    assert test.p_value == test.p_holm == pytest.approx(1 / 2001)
    assert test.similarity.value == 0
    assert test.mos.value == 0


def test_swapping_two_runs_changes_nothing_but_the_sign():
    there = compare_runs([made_run("a", 6, NEARLY), made_run("b", 6, BAD)]).tests[0]
    back = compare_runs([made_run("x", 6, BAD), made_run("y", 5, NEARLY)]).tests[0]
    assert there.wer_points.value == pytest.approx(back.wer_points.value)
    assert there.p_value == back.p_value


def test_equal_word_errors_make_both_best_whatever_the_order_of_runs():
    one, other = made_run("a", 6, [1, 0] * 20), made_run("b", 6, [0, 1] * 20)
    assert standings(one, other) == standings(other, one) == {"a": "best", "b": "best"}


def test_the_p_value_is_that_of_the_interval_beside_it():
    # made_run's sentences are of one length, so errors are moved to sentences of other lengths by hand.
    runs = [made_run("a", 6, [0] * 200), made_run("b", 6, [0] * 200)]
    pairs = [(8, 1, 0)] * 15 + [(3, 0, 1)] * 4 + [(5, 0, 0)] * 181
    for run, place in zip(runs, (1, 2), strict=True):
        run.sentences["student"] = [
            replace(sentence, errors=WordErrors(pair[0] - pair[place], pair[place], 0, 0))
            for sentence, pair in zip(run.sentences["student"], pairs, strict=True)
        ]
    (test,) = compare_runs(runs).tests
    assert abs(test.wer_points.value) == pytest.approx(100 * 11 / 1037)
    assert test.p_value == pytest.approx(0.019, abs=0.012)  # of 2,000 draws
    assert not test.wer_points.low <= 0 <= test.wer_points.high


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"test_set_sha256": "u" * 64}, "test_set_sha256: uuu"),
        ({"asr": "other"}, "asr: other against toy"),
        ({"normalizer": "x"}, "normalizer: x against basic"),
    ],
)
def test_runs_that_were_judged_on_other_things_are_refused(change, what):
    with pytest.raises(InvalidInputError, match=f"runs b and a: observed {what}"):
        compare_runs([made_run("a", 6, GOOD), made_run("b", 6, GOOD, **change)])


def test_another_teacher_is_refused():
    other = made_run("b", 6, GOOD)
    object.__setattr__(other, "plan", other.plan.model_copy(update={"teacher_sha256": "b" * 64}))
    with pytest.raises(InvalidInputError, match="teacher: bbbbbbbbbbbb against aaaaaaaaaaaa"):
        compare_runs([made_run("a", 6, GOOD), other])


def test_missing_or_shuffled_sentences_are_refused():
    for sentences in (said([0, 0, 0]), said(GOOD)[::-1]):
        broken = made_run("b", 6, GOOD)
        broken.sentences["student"] = sentences
        with pytest.raises(InvalidInputError, match=r"run b, utterances\.jsonl"):
            compare_runs([made_run("a", 6, GOOD), broken])
    broken = made_run("b", 6, GOOD)
    broken.sentences["student"] = said([0, 0, 0])
    with pytest.raises(InvalidInputError, match=r"3 sentences of student"):
        compare_runs([broken])


def test_none_or_one_name_twice_is_refused():
    with pytest.raises(InvalidInputError, match="observed none"):
        compare_runs([])
    with pytest.raises(InvalidInputError, match="each once"):
        compare_runs([made_run("a", 6, GOOD), made_run("a", 6, GOOD)])


def test_mos_is_compared_only_where_both_were_rated():
    other = made_run("b", 6, GOOD)
    other.sentences["student"] = [replace(sentence, mos=None) for sentence in other.sentences["student"]]
    (test,) = compare_runs([made_run("a", 6, GOOD), other]).tests
    assert test.mos is None


def test_variants_of_a_student_are_contenders_of_its_depth():
    run = made_run("a", 6, GOOD)
    run.report.systems["student-int8"] = made_system("student-int8", 6, 0.3, utterances=40)
    run.report.gaps.append(
        PairedGap(**run.report.gaps[0].model_dump() | {"system": "student-int8", "baseline": "teacher"})
    )
    run.sentences["student-int8"] = said(BAD)
    assert standings(run) == {"a": "best", "a, int8": "worse than the best"}


def test_table_marks_the_best_and_shows_what_differs():
    runs = [
        made_run("good", 6, GOOD, knobs={"distill_student.steps": "600", "teacher.family": "nano"}),
        made_run("bad", 6, BAD, knobs={"distill_student.steps": "60", "teacher.family": "nano"}, machine="other"),
    ]
    text = comparison_text(compare_runs(runs))
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")] for line in text.splitlines() if "|" in line
    }
    assert rows["good"][2:4] == ["6 of 12", "0.0 M (50 %)"]
    assert rows["good"][-2] == "**best**"
    assert rows["bad"][-2] == "worse"
    assert rows["distill_student.steps"][2:4] == ["600", "60"]
    assert "teacher.family" not in text
    assert "different machines" in text


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert as_table(("a", "b"), [("x|y", "z")]).splitlines()[-1] == "| x/y | z |"
