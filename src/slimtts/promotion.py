"""May this student go to production: the gate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel

from slimtts.errors import InvalidInputError
from slimtts.params import RegisterModelParams
from slimtts.results import Basis, EvaluationReport, Lineage, PairedGap, SystemResult, Verdict

# Better than this is a fault of the measurement until a person has looked: healing a half-depth student won a few
# points over its own teacher in trials, never ten.
MAX_BELIEVABLE_GAIN_POINTS = 10.0
# What the recogniser mishears in the originals (through the codec, if there is one) is a floor for any system that
# says the same sentences; two points leave room for speech that is clearer than they are.
MAX_POINTS_BELOW_REFERENCE = 2.0
# The same teacher on the same sentences differs between processors by single words, never by a point; more means that
# it was decoded in another way.
MAX_TEACHER_DRIFT_POINTS = 1.0
# An interval over this many sentences is narrower only when a judge gives all of them one number.
SAME = 1e-9


@dataclass(frozen=True)
class Production:
    """The version that a student would replace; `basis` is None where nothing is recorded."""

    version: str
    basis: Basis | None


def judge(
    evaluation: EvaluationReport,
    gate: RegisterModelParams,
    lineage: Lineage,
    production: Production | None = None,
    accept_new_basis: str = "",
) -> Verdict:
    """The verdict on `student` against `teacher`, with one sentence a reason.

    INCOMPLETE: a system, their comparison or enough utterances are missing, a number is not possible (NaN too), the
    evaluation is of other weights or by another recogniser than the release's, a judge cannot do its work (it mishears
    the originals or the teacher, takes all voices for one, gives all sentences one score), layers that were tied in
    the scores were cut in the order of their numbers, or it rests on another test set, recogniser or teacher than what
    production was judged on. `accept_new_basis`, the words of a person, allows this last one. REGRESSION: a limit of
    the gate is broken. ANOMALOUS: too good to be believed. Otherwise ACCEPT, and the reasons are the limits that were
    kept. The first that applies decides: nothing passes by default.
    """
    incomplete = _missing(evaluation, gate.min_utterances) or _impossible_numbers(evaluation)
    incomplete = incomplete or _of_other_models(evaluation, lineage)
    if incomplete:
        return Verdict(decision="INCOMPLETE", reasons=incomplete)
    useless, sound = _judges(evaluation, gate)
    useless += _left_to_chance(lineage)
    if useless:
        return Verdict(decision="INCOMPLETE", reasons=useless)
    basis = basis_of(evaluation)
    changes = _changes_of_basis(basis, production) if production else []
    if changes and not accept_new_basis:
        return Verdict(decision="INCOMPLETE", reasons=changes)
    teacher, student = evaluation.systems["teacher"], evaluation.systems["student"]
    gap = evaluation.gap("student", "teacher")
    broken, kept = _against_limits(teacher, student, gap, gate)
    if production and production.basis and not changes:
        worse, no_worse = _against_production(basis, production, production.basis, gate)
        broken, kept = broken + worse, kept + no_worse
    if broken:
        return Verdict(decision="REGRESSION", reasons=broken)
    unbelievable = _too_good(evaluation, student, gap)
    if unbelievable:
        return Verdict(decision="ANOMALOUS", reasons=unbelievable)
    return Verdict(decision="ACCEPT", reasons=kept + sound + [f"Accepted by a person: {change}" for change in changes])


def basis_of(evaluation: EvaluationReport) -> Basis:
    """What this evaluation rests on; it must hold teacher and student."""
    return Basis(
        test_set_sha256=evaluation.test_set_sha256,
        asr=evaluation.asr,
        normalizer=evaluation.normalizer,
        teacher_sha256=evaluation.weights_sha256.get("teacher", ""),
        teacher_wer=evaluation.systems["teacher"].wer_corpus.value,
        student_wer=evaluation.systems["student"].wer_corpus.value,
        benchmark=evaluation.benchmark,
        language=evaluation.language,
        metric=evaluation.metric,
        similarity_predictor=evaluation.similarity_predictor,
        mos_predictor=evaluation.systems["student"].mos_predictor,
    )


def _missing(evaluation: EvaluationReport, min_utterances: int) -> list[str]:
    reasons = [
        f"The evaluation holds no {name}; observed systems: {', '.join(evaluation.systems) or 'none'}."
        for name in ("teacher", "student")
        if name not in evaluation.systems
    ]
    try:
        evaluation.gap("student", "teacher")
    except InvalidInputError as error:
        reasons.append(f"The student was not compared with the teacher; observed comparisons: {error.allowed}.")
    counts = {name: system.utterances for name, system in evaluation.systems.items()}
    if set(counts.values()) - {evaluation.utterances}:
        observed = ", ".join(f"{name} {count}" for name, count in counts.items())
        reasons.append(f"Every system must be judged on the same {evaluation.utterances} utterances; had: {observed}.")
    if evaluation.utterances < min_utterances:
        reasons.append(f"Only {evaluation.utterances} utterances were judged; at least {min_utterances} are needed.")
    names = {"recogniser": evaluation.asr, "normaliser": evaluation.normalizer, "test set": evaluation.test_set_sha256}
    return reasons + [f"The evaluation does not name its {what}." for what, name in names.items() if not name]


def _impossible_numbers(evaluation: EvaluationReport) -> list[str]:
    """Every number that the verdict rests on must lie in its range, and every other one be finite; NaN is neither."""
    teacher, student = evaluation.systems["teacher"], evaluation.systems["student"]
    gap = evaluation.gap("student", "teacher")
    tiny, huge, slowest = 1e-9, 1e9, 1e4
    reference = [] if evaluation.reference_wer is None else [evaluation.reference_wer]
    others = [] if evaluation.other_voice_similarity is None else [evaluation.other_voice_similarity]
    numbers = [
        *(("WER of the originals", wer, 0.0, huge) for wer in reference),
        *(("similarity to other voices", cosine, -1.0 - tiny, 1.0 + tiny) for cosine in others),
        ("teacher's WER", teacher.wer_corpus.value, 0.0, huge),
        ("student's WER", student.wer_corpus.value, 0.0, huge),
        ("upper bound of the WER gap in points", gap.wer_points.high, -huge, huge),
        ("similarity gap", gap.similarity.value, -2.0, 2.0),
        ("lower bound of the MOS gap", gap.mos.low, -4.0, 4.0),
        ("student's no-END rate", student.no_end_rate, 0.0, 1.0),
        ("teacher's LM-RTF", teacher.speed.lm_rtf, tiny, slowest),  # above: nothing that was timed could be heard
        ("student's LM-RTF", student.speed.lm_rtf, tiny, slowest),
    ]
    impossible = [
        f"The {what} was {value}; it must be a number from {low:g} to {high:g}."
        for what, value, low, high in numbers
        if not low <= value <= high
    ]
    judged = {"teacher": teacher, "student": student, "gap": gap}
    return impossible or [
        f"The {where} was {value}; it must be a finite number."
        for name, part in judged.items()
        for where, value in _numbers_in(name, part)
        if not math.isfinite(value)
    ]


def _numbers_in(name: str, part: BaseModel) -> Iterator[tuple[str, float]]:
    for key, value in part:
        if isinstance(value, BaseModel):
            yield from _numbers_in(f"{name}.{key}", value)
        elif isinstance(value, float):
            yield f"{name}.{key}", value


def _of_other_models(evaluation: EvaluationReport, lineage: Lineage) -> list[str]:
    """Numbers of other weights, or of another recogniser, say nothing about this release."""
    weights = evaluation.weights_sha256
    pairs = [
        ("teacher's weights", weights.get("teacher", ""), lineage.teacher_sha256),
        ("student's weights", weights.get("student", ""), lineage.student_sha256),
        ("recogniser", evaluation.asr, lineage.asr),
        ("normaliser", evaluation.normalizer, lineage.normalizer),
        ("MOS predictor of the student", evaluation.systems["student"].mos_predictor,
         evaluation.systems["teacher"].mos_predictor),
    ]  # fmt: skip
    return [
        f"Stale numbers: {what} of the evaluation: {_short(observed)}; of the release: {_short(allowed)}; "
        "evaluate again."
        for what, observed, allowed in pairs
        if not observed or observed != allowed
    ]


def _judges(evaluation: EvaluationReport, gate: RegisterModelParams) -> tuple[list[str], list[str]]:
    """(useless, sound): what says that a judge cannot tell good from bad here, and what says that it can."""
    teacher, unit = evaluation.systems["teacher"], "words" if evaluation.metric == "WER" else "characters"
    at_most = [(f"the teacher's {unit}", teacher.wer_corpus.value, gate.max_teacher_wer)]
    if evaluation.reference_wer is not None:
        at_most.insert(0, (f"the originals' {unit}", evaluation.reference_wer, gate.max_reference_wer))
    useless: list[str] = []
    sound: list[str] = []
    for what, observed, limit in at_most:
        sentence = f"The recogniser got {100 * observed:.4g} % of {what} wrong; at most {100 * limit:.4g} % is allowed."
        (sound if observed <= limit else useless).append(sentence)
    least = gate.min_voice_contrast
    if evaluation.other_voice_similarity is not None and least is not None:
        contrast = teacher.similarity.value - evaluation.other_voice_similarity
        sentence = (
            f"The teacher's speech is {contrast:.4g} of cosine nearer to its prompt's voice than to other voices; "
            f"at least {least:.4g} is needed."
        )
        (sound if contrast >= least else useless).append(sentence)
    for what, scores in (("similarity", teacher.similarity), ("MOS", teacher.mos)):
        if scores.high - scores.low <= SAME:
            useless.append(f"The {what} was {scores.value:.4g} for every sentence of the teacher: it judges nothing.")
    return useless, sound


def _left_to_chance(lineage: Lineage) -> list[str]:
    """Layers whose scores were equal right where the cut was made."""
    if not lineage.tied_layers:
        return []
    return [
        f"Layers {lineage.tied_layers} have equal scores at the cut, so their numbers chose which of them stayed; "
        "score on more utterances, or name the layers in prune_layers.retained."
    ]


def _changes_of_basis(basis: Basis, production: Production) -> list[str]:
    """Why this evaluation cannot be compared with that of the version in production."""
    former = production.basis
    if former is None:
        return [f"Nothing is recorded of what version {production.version} in production was judged on."]
    pairs = [
        ("test set", basis.test_set_sha256, former.test_set_sha256),
        ("recogniser", basis.asr, former.asr),
        ("normaliser", basis.normalizer, former.normalizer),
        ("teacher", basis.teacher_sha256, former.teacher_sha256),
        ("benchmark", basis.benchmark, former.benchmark),
        ("language", basis.language, former.language),
        ("metric", basis.metric, former.metric),
    ]
    predictors = [
        ("similarity predictor", basis.similarity_predictor, former.similarity_predictor),
        ("MOS predictor", basis.mos_predictor, former.mos_predictor),
    ]
    pairs += [(what, observed, before) for what, observed, before in predictors if observed and before]
    changes = [
        f"The {what} is {_short(observed)}; version {production.version} in production was judged on {_short(before)}."
        for what, observed, before in pairs
        if observed != before
    ]
    drift = 100 * abs(basis.teacher_wer - former.teacher_wer)
    if not changes and not drift <= MAX_TEACHER_DRIFT_POINTS:
        changes.append(
            f"Stale baseline: the same teacher on the same sentences differs by {drift:.4g} points of WER from when "
            f"version {production.version} was judged; at most {MAX_TEACHER_DRIFT_POINTS:g} is allowed."
        )
    return changes


def _against_limits(
    teacher: SystemResult, student: SystemResult, gap: PairedGap, gate: RegisterModelParams
) -> tuple[list[str], list[str]]:
    """(broken, kept), one sentence for each limit of the gate."""
    speedup = teacher.speed.lm_rtf / student.speed.lm_rtf
    at_most = [
        ("upper 95 % bound of the WER gap is", gap.wer_points.high, gate.max_wer_gap_upper_points, "points"),
        ("similarity to the prompt drops by", -gap.similarity.value, gate.max_similarity_drop, "of cosine"),
        ("upper 95 % bound of the MOS drop is", -gap.mos.low, gate.max_mos_drop_upper, "of 5"),
        ("share of utterances that never end is", student.no_end_rate, gate.max_no_end_rate, "of all"),
    ]
    broken: list[str] = []
    kept: list[str] = []
    for what, observed, limit, unit in at_most:
        sentence = f"The {what} {observed + 0.0:.4g} {unit}; at most {limit:.4g} is allowed."  # + 0.0: no "-0"
        (kept if observed <= limit else broken).append(sentence)
    sentence = f"The student's language model is {speedup:.4g} times faster; at least {gate.min_speedup:.4g} is needed."
    (kept if speedup >= gate.min_speedup else broken).append(sentence)
    return broken, kept


def _against_production(
    basis: Basis, production: Production, former: Basis, gate: RegisterModelParams
) -> tuple[list[str], list[str]]:
    """(broken, kept) of the limit against the version in production, if the gate has one."""
    limit = gate.max_wer_points_over_production
    if limit is None:
        return [], []
    more = 100 * (basis.student_wer - former.student_wer)
    sentence = (
        f"The student's WER is {more:.4g} points above that of version {production.version} in production; "
        f"at most {limit:.4g} is allowed."
    )
    return ([], [sentence]) if more <= limit else ([sentence], [])


def _too_good(evaluation: EvaluationReport, student: SystemResult, gap: PairedGap) -> list[str]:
    reasons = []
    if gap.wer_points.high < -MAX_BELIEVABLE_GAIN_POINTS:
        reasons.append(
            f"The student beats its teacher by at least {-gap.wer_points.high:.4g} points of WER; "
            f"more than {MAX_BELIEVABLE_GAIN_POINTS:g} is not believed unseen."
        )
    reference = student.wer_corpus.value if evaluation.reference_wer is None else evaluation.reference_wer
    below = 100 * (reference - student.wer_corpus.value)
    if below > MAX_POINTS_BELOW_REFERENCE:
        reasons.append(
            f"The student's WER is {below:.4g} points below that of the originals; "
            f"more than {MAX_POINTS_BELOW_REFERENCE:g} is not believed unseen."
        )
    return reasons


def _short(name: str) -> str:
    """Hashes by their first digits, other names as they are."""
    return (name[:12] if len(name) == 64 else name) or "not named"
