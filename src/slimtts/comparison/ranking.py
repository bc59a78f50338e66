"""Which student is best at equal depth: numbers side by side, and paired tests on the same sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from slimtts.comparison.runs import STUDENT, FinishedRun, Sentence
from slimtts.errors import InvalidInputError
from slimtts.evaluation.protocols import unlike
from slimtts.evaluation.statistics import compare_wer, paired_bootstrap_mean
from slimtts.results import Interval, Result

SAMPLES, SEED = 2000, 1
SIGNIFICANT = 0.05
Standing = Literal["best", "not told apart from the best", "worse than the best", "alone at its depth"]


class Contender(Result):
    """One student: its size, its numbers, and where it stands among those of its depth."""

    name: str
    run: str
    system: str
    layers: int
    teacher_layers: int
    parameters: int
    parameter_share: float
    wer: Interval
    wer_gap_points: Interval
    no_end_rate: float
    similarity: Interval
    mos: Interval
    mos_predictor: str
    lm_rtf: float
    end_to_end_rtf: float
    lm_speedup: float
    peak_memory_mb: float
    weight_mb: float | None
    machine: str
    standing: Standing = "alone at its depth"


class PairedTest(Result):
    """`a` minus `b` on the same sentences; `p_value` is that of `wer_points`, `p_holm` is it corrected for all pairs.

    `mos` is None where the two were not rated on the same sentences.
    """

    a: str
    b: str
    wer_points: Interval
    p_value: float
    p_holm: float
    similarity: Interval
    mos: Interval | None


class Comparison(Result):
    """Students by depth, then by WER; what all of them were judged on; the knobs in which their runs differ."""

    basis: dict[str, str]
    utterances: int
    students: list[Contender]
    tests: list[PairedTest]
    differing_knobs: dict[str, dict[str, str]]


def compare_runs(runs: Sequence[FinishedRun]) -> Comparison:
    """All students of the runs.

    Raises:
        InvalidInputError: no runs, two of one name, or runs whose numbers or sentences cannot be compared.
    """
    contenders = contenders_of(runs)
    require_same_sentences(runs)
    sentences = {_name(run, system): run.sentences[system] for run in runs for system in run.students}
    raw = [_paired(a.name, b.name, sentences) for a, b in combinations(contenders, 2)]
    corrected = holm([test.p_value for test in raw])
    tests = [test.model_copy(update={"p_holm": p}) for test, p in zip(raw, corrected, strict=True)]
    return Comparison(
        basis=runs[0].basis,
        utterances=runs[0].report.utterances,
        students=[c.model_copy(update={"standing": _standing(c, contenders, tests)}) for c in contenders],
        tests=tests,
        differing_knobs=differing_knobs(runs),
    )


def contenders_of(runs: Sequence[FinishedRun]) -> list[Contender]:
    """All students of the runs by depth, then by WER; who is best is not said yet.

    Raises:
        InvalidInputError: no runs, two of one name, or runs whose numbers cannot be compared.
    """
    require_one_basis(runs)
    found = [_contender(run, system) for run in runs for system in run.students]
    return sorted(found, key=lambda one: (one.layers, one.wer.value))


def require_one_basis(runs: Sequence[FinishedRun]) -> None:
    """Refuses runs that were judged on different things.

    Raises:
        InvalidInputError: no runs, two of one name, or another test set, recogniser, normaliser, predictor or teacher.
    """
    if not runs:
        raise InvalidInputError("runs", "none", "at least one that was evaluated", "name some")
    first, names = runs[0], [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InvalidInputError("runs", f"{', '.join(names)}", "each once", "name every run once")
    for run in runs:
        different = unlike(run.report, first.report)
        if run.plan.teacher_sha256 != first.plan.teacher_sha256:
            different.append(f"teacher: {run.plan.teacher_sha256[:12]} against {first.plan.teacher_sha256[:12]}")
        if different:
            raise InvalidInputError(
                f"runs {run.name} and {first.name}", "; ".join(different), "numbers on one basis",
                "compare runs that were judged alike, or evaluate one of them again",
            )  # fmt: skip


def require_same_sentences(runs: Sequence[FinishedRun]) -> None:
    """Refuses runs of one test set whose sentences are not all there, in one order.

    Raises:
        InvalidInputError: sentences of a student are missing, or in another order.
    """
    first = runs[0]
    ids = [one.id for one in first.sentences.get(STUDENT, ())]
    for run in runs:
        for system in run.students:
            own = [one.id for one in run.sentences.get(system, ())]
            if own != ids or len(ids) != run.report.utterances:
                raise InvalidInputError(
                    f"run {run.name}, utterances.jsonl", f"{len(own)} sentences of {system}",
                    f"the {first.report.utterances} of its evaluation, in their order", "run evaluate_student again",
                )  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): chance of even one false alarm among all tests stays below the level."""
    order, worst = sorted(range(len(p_values)), key=lambda i: p_values[i]), 0.0
    corrected = [0.0] * len(p_values)
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def differing_knobs(runs: Sequence[FinishedRun]) -> dict[str, dict[str, str]]:
    """Knob -> its value in each run, for the knobs that are not the same in all; "" where a run has none."""
    names = sorted({knob for run in runs for knob in run.knobs})
    values = {knob: {run.name: run.knobs.get(knob, "") for run in runs} for knob in names}
    return {knob: of_runs for knob, of_runs in values.items() if len(set(of_runs.values())) > 1}


def _name(run: FinishedRun, system: str) -> str:
    return run.name if system == STUDENT else f"{run.name}, {system.removeprefix(f'{STUDENT}-')}"


def _contender(run: FinishedRun, system: str) -> Contender:
    report, student = run.report, run.students[system]
    teacher, gap = report.systems["teacher"], report.gap(system, "teacher")
    return Contender(
        name=_name(run, system),
        run=run.name,
        system=system,
        layers=student.num_layers,
        teacher_layers=teacher.num_layers,
        parameters=student.parameters,
        parameter_share=student.parameters / teacher.parameters,
        wer=student.wer_corpus,
        wer_gap_points=gap.wer_points,
        no_end_rate=student.no_end_rate,
        similarity=student.similarity,
        mos=student.mos,
        mos_predictor=student.mos_predictor,
        lm_rtf=student.speed.lm_rtf,
        end_to_end_rtf=student.speed.end_to_end_rtf,
        lm_speedup=teacher.speed.lm_rtf / student.speed.lm_rtf,
        peak_memory_mb=student.speed.peak_memory_mb,
        weight_mb=student.weight_mb,
        machine=report.machine,
    )


def _paired(a: str, b: str, sentences: dict[str, Sequence[Sentence]]) -> PairedTest:
    ours, theirs = sentences[a], sentences[b]
    pairs = list(zip(ours, theirs, strict=True))
    wer = compare_wer([x.errors for x, _ in pairs], [y.errors for _, y in pairs], SAMPLES, SEED)
    rated = [(x.mos, y.mos) for x, y in pairs if x.mos is not None or y.mos is not None]
    both = [(x, y) for x, y in rated if x is not None and y is not None]
    return PairedTest(
        a=a,
        b=b,
        wer_points=wer.points,
        p_value=wer.p_value,
        p_holm=wer.p_value,
        similarity=paired_bootstrap_mean([s.similarity for s in ours], [s.similarity for s in theirs], SAMPLES, SEED),
        mos=(
            paired_bootstrap_mean([x for x, _ in both], [y for _, y in both], SAMPLES, SEED)
            if both and len(both) == len(rated)
            else None
        ),
    )


def _standing(one: Contender, contenders: Sequence[Contender], tests: Sequence[PairedTest]) -> Standing:
    """By WER among the students of its depth; `contenders` are sorted."""
    peers = [c for c in contenders if c.layers == one.layers]
    if len(peers) == 1:
        return "alone at its depth"
    best = peers[0].name
    if one.wer.value == peers[0].wer.value:  # two with equal WER are both best: the order of runs decides nothing
        return "best"
    p_holm = next(test.p_holm for test in tests if {test.a, test.b} == {best, one.name})
    return "worse than the best" if p_holm < SIGNIFICANT else "not told apart from the best"
