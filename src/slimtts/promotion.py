"""May this student go to production, and what was decided before: the gate, and the history of its decisions."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from slimtts.errors import InvalidInputError
from slimtts.params import RegisterModelParams
from slimtts.results import EvaluationReport, PairedGap, Result, SystemResult, Verdict
from slimtts.storage import atomic_path

# Better than this is a fault of the measurement until a person has looked: healing a half-depth student won a few
# points over its own teacher in trials, never ten.
MAX_BELIEVABLE_GAIN_POINTS = 10.0
# What the recogniser mishears in the originals (through the codec, if there is one) is a floor for any system that
# says the same sentences; two points leave room for speech that is clearer than they are.
MAX_POINTS_BELOW_REFERENCE = 2.0


def judge(evaluation: EvaluationReport, gate: RegisterModelParams) -> Verdict:
    """The verdict on `student` against `teacher`, with one sentence a reason.

    INCOMPLETE: a system, their comparison or enough utterances are missing, or a number is not possible (NaN too).
    REGRESSION: a limit of the gate is broken. ANOMALOUS: too good to be believed. Otherwise ACCEPT, and the reasons
    are the limits that were kept. The first that applies decides: nothing passes by default.
    """
    incomplete = _missing(evaluation, gate.min_utterances)
    if incomplete:
        return Verdict(decision="INCOMPLETE", reasons=incomplete)
    teacher, student = evaluation.systems["teacher"], evaluation.systems["student"]
    gap = evaluation.gap("student", "teacher")
    impossible = _impossible_numbers(evaluation, teacher, student, gap)
    if impossible:
        return Verdict(decision="INCOMPLETE", reasons=impossible)
    broken, kept = _against_limits(teacher, student, gap, gate)
    if broken:
        return Verdict(decision="REGRESSION", reasons=broken)
    unbelievable = _too_good(evaluation, student, gap)
    if unbelievable:
        return Verdict(decision="ANOMALOUS", reasons=unbelievable)
    return Verdict(decision="ACCEPT", reasons=kept)


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
    return reasons


def _impossible_numbers(
    evaluation: EvaluationReport, teacher: SystemResult, student: SystemResult, gap: PairedGap
) -> list[str]:
    """Every number that the verdict rests on must lie in its range; NaN lies in none."""
    tiny, huge = 1e-9, 1e9
    numbers = [
        ("WER of the originals", evaluation.reference_wer, 0.0, huge),
        ("teacher's WER", teacher.wer_corpus.value, 0.0, huge),
        ("student's WER", student.wer_corpus.value, 0.0, huge),
        ("upper bound of the WER gap in points", gap.wer_points.high, -huge, huge),
        ("similarity gap", gap.similarity.value, -2.0, 2.0),
        ("student's no-END rate", student.no_end_rate, 0.0, 1.0),
        ("teacher's LM-RTF", teacher.speed.lm_rtf, tiny, huge),
        ("student's LM-RTF", student.speed.lm_rtf, tiny, huge),
    ]
    return [
        f"The {what} was {value}; it must be a number from {low:g} to {high:g}."
        for what, value, low, high in numbers
        if not low <= value <= high
    ]


def _against_limits(
    teacher: SystemResult, student: SystemResult, gap: PairedGap, gate: RegisterModelParams
) -> tuple[list[str], list[str]]:
    """(broken, kept), one sentence for each limit of the gate."""
    speedup = teacher.speed.lm_rtf / student.speed.lm_rtf
    at_most = [
        ("upper 95 % bound of the WER gap is", gap.wer_points.high, gate.max_wer_gap_upper_points, "points"),
        ("similarity to the prompt drops by", -gap.similarity.value, gate.max_similarity_drop, "of cosine"),
        ("share of utterances that never end is", student.no_end_rate, gate.max_no_end_rate, "of all"),
    ]
    broken: list[str] = []
    kept: list[str] = []
    for what, observed, limit, unit in at_most:
        sentence = f"The {what} {observed:.4g} {unit}; at most {limit:.4g} is allowed."
        (kept if observed <= limit else broken).append(sentence)
    sentence = f"The student's language model is {speedup:.4g} times faster; at least {gate.min_speedup:.4g} is needed."
    (kept if speedup >= gate.min_speedup else broken).append(sentence)
    return broken, kept


def _too_good(evaluation: EvaluationReport, student: SystemResult, gap: PairedGap) -> list[str]:
    reasons = []
    if gap.wer_points.high < -MAX_BELIEVABLE_GAIN_POINTS:
        reasons.append(
            f"The student beats its teacher by at least {-gap.wer_points.high:.4g} points of WER; "
            f"more than {MAX_BELIEVABLE_GAIN_POINTS:g} is not believed unseen."
        )
    below = 100 * (evaluation.reference_wer - student.wer_corpus.value)
    if below > MAX_POINTS_BELOW_REFERENCE:
        reasons.append(
            f"The student's WER is {below:.4g} points below that of the originals; "
            f"more than {MAX_POINTS_BELOW_REFERENCE:g} is not believed unseen."
        )
    return reasons


class PromotionEvent(Result):
    """One decision about one version. `former_version` is what was in production before, if anything was."""

    model_name: str
    version: str
    evaluation_sha256: str
    decision: Literal["ACCEPT", "REGRESSION", "INCOMPLETE", "ANOMALOUS"]
    action: Literal["promoted", "refused", "rolled_back"]
    former_version: str | None
    recorded_at: datetime

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two records the same event: a retry differs only in its time."""
        return self.model_name, self.version, self.evaluation_sha256, self.action


def record_event(history: Path, event: PromotionEvent) -> bool:
    """Appends the event as a JSON line; False when it is already there, as after a retry.

    A version that returns to production after another one was there is a new event. Writers wait for each other, and
    a kill leaves the former history whole.

    Raises:
        InvalidInputError: the history holds a line that is not an event.
    """
    with _locked(history):
        events = read_history(history)
        if _is_known(events, event):
            return False
        with atomic_path(history) as tmp:
            tmp.write_text("".join(f"{e.model_dump_json()}\n" for e in [*events, event]))
        return True


def read_history(history: Path) -> list[PromotionEvent]:
    """All events from the oldest to the newest; none when there is no file yet.

    Raises:
        InvalidInputError: a line is not an event; the message names it.
    """
    if not history.exists():
        return []
    events = []
    for number, line in enumerate(history.read_text().splitlines(), start=1):
        try:
            events.append(PromotionEvent.model_validate_json(line))
        except ValidationError as error:
            raise InvalidInputError(
                f"{history} line {number}", str(error).splitlines()[0], "a promotion event",
                "restore the history from its backup",
            ) from None  # fmt: skip
    return events


def _is_known(events: list[PromotionEvent], event: PromotionEvent) -> bool:
    for earlier in reversed(events):
        if earlier.key == event.key:
            return True
        replaced = earlier.model_name == event.model_name and earlier.action != "refused"
        if replaced and event.action != "refused" and earlier.version != event.version:
            return False
    return False


@contextmanager
def _locked(history: Path) -> Iterator[None]:
    # A file of its own: the history itself is replaced at every write, and a lock would stay with the old one.
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.with_name(f"{history.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
