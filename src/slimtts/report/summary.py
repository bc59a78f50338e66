"""The top of the page: what a person who decides wants to know first. HTML, all text escaped."""

from __future__ import annotations

import math
from html import escape

from slimtts.report.content import OURS, Content, RunFacts
from slimtts.report.votes import Tally
from slimtts.results import Interval, SystemResult

DECISIONS = {
    "ACCEPT": "passes the gate in front of production",
    "REGRESSION": "is worse than the gate allows",
    "INCOMPLETE": "cannot be judged on what was measured",
    "ANOMALOUS": "shows numbers that cannot be right",
}


def summary(content: Content) -> str:
    """Verdict, key results, and the table of all systems."""
    facts = content.facts
    return _verdict(facts) + _cards(facts) + _table(content)


def in_words(facts: RunFacts) -> str:
    """The result in one sentence."""
    report = facts.evaluation
    student, teacher = report.systems[OURS], report.systems["teacher"]
    gap = report.gap(OURS, "teacher").wer_points
    if gap.low > 0:
        errors = f"makes {gap.value:.1f} points more errors than its teacher"
    elif gap.high < 0:
        errors = f"makes {-gap.value:.1f} points fewer errors than its teacher"
    else:
        errors = "makes no measurably different number of errors than its teacher"
    size = _percent(student.parameters / teacher.parameters, 0)
    speed = _times(teacher.speed.lm_rtf, student.speed.lm_rtf)
    return (
        f"The student has {student.num_layers} of {teacher.num_layers} layers and {size} of the parameters, is {speed} "
        f"as fast and {errors} (95 % interval {gap.low:+.1f} to {gap.high:+.1f} points, {report.utterances} sentences)."
    )


def votes_section(tally: Tally) -> str:
    """What blind listeners preferred, and how they rated."""
    counts = zip(tally.pair, (tally.for_first, tally.for_second), strict=True)
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{count}</td><td>{_interval(tally.mos[name], '.2f')}</td></tr>"
        for name, count in counts
    )
    return (
        '<section aria-labelledby="votes-title"><h2 id="votes-title">What listeners said, blind</h2>'
        f'<p class="lead">{escape(tally.in_words())}</p><div class="scroll"><table class="numbers narrow"><thead><tr>'
        "<th scope=col>system</th><th scope=col>votes for it</th><th scope=col>mean opinion, 1 to 5 [95 %]</th></tr>"
        f"</thead><tbody>{rows}<tr><th scope=row>no preference</th><td>{tally.undecided}</td><td></td></tr></tbody>"
        "</table></div></section>"
    )


def _verdict(facts: RunFacts) -> str:
    if facts.release is None:
        told = '<p class="verdict none"><strong>Not judged yet</strong></p>'
        reasons = ""
    else:
        verdict = facts.release.verdict
        told = (
            f'<p class="verdict {verdict.decision.lower()}"><strong>{verdict.decision}</strong> '
            f"<span>The student {DECISIONS[verdict.decision]}.</span></p>"
        )
        listed = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
        reasons = f"<details><summary>Why</summary><ul>{listed}</ul></details>" if listed else ""
    return f'{told}<p class="lead">{escape(in_words(facts))}</p>{reasons}'


def _cards(facts: RunFacts) -> str:
    report = facts.evaluation
    student, teacher = report.systems[OURS], report.systems["teacher"]
    gap = report.gap(OURS, "teacher")
    name = "Word error rate" if report.metric == "WER" else "Character error rate"
    cards = [
        (name, _interval(student.wer_corpus, ".1f", 100, " %"),
         f"teacher {_interval(teacher.wer_corpus, '.1f', 100, ' %')}"),
        ("Gap to the teacher", _interval(gap.wer_points, "+.1f"),
         f"points of {report.metric}, p = {gap.p_value:.2g}"),
        ("Speed, language model", _times(teacher.speed.lm_rtf, student.speed.lm_rtf),
         f"RTF {student.speed.lm_rtf:.3f}, teacher {teacher.speed.lm_rtf:.3f}"),
        ("Speed, end to end", _times(teacher.speed.end_to_end_rtf, student.speed.end_to_end_rtf),
         f"RTF {student.speed.end_to_end_rtf:.3f}, teacher {teacher.speed.end_to_end_rtf:.3f}"),
        ("Never ends", _percent(student.no_end_rate, 1), f"teacher {_percent(teacher.no_end_rate, 1)}"),
        ("Depth", f"{student.num_layers} layers", f"teacher {teacher.num_layers}"),
        ("Parameters", _millions(student.parameters),
         f"teacher {_millions(teacher.parameters)}, {_percent(student.parameters / teacher.parameters - 1, 0, '+')}"),
        ("Peak memory", f"{student.speed.peak_memory_mb:.0f} MB",
         f"teacher {teacher.speed.peak_memory_mb:.0f} MB{_weights(student, teacher)}"),
        ("Voice similarity", _interval(student.similarity, ".3f"),
         f"to the teacher {_interval(gap.similarity, '+.3f')}"),
        ("Predicted MOS", _interval(student.mos, ".2f"), f"to the teacher {_interval(gap.mos, '+.2f')}"),
    ]  # fmt: skip
    shown = "".join(
        f'<div class="card"><dt>{escape(title)}</dt><dd><b>{_value(value)}</b><span>{escape(below)}</span></dd></div>'
        for title, value, below in cards
    )
    return f'<dl class="cards">{shown}</dl>'


def _value(shown: str) -> str:
    """The number large, its interval small."""
    number, bracket, interval = shown.partition(" [")
    return escape(number) + (f" <small>[{escape(interval)}</small>" if bracket else "")


def _table(content: Content) -> str:
    report = content.facts.evaluation
    gaps = {gap.system: gap for gap in report.gaps if gap.baseline == "teacher"}
    rows = []
    for column in content.columns:
        if column.name not in report.systems:
            continue
        system, gap = report.systems[column.name], gaps.get(column.name)
        cells = [
            str(system.num_layers),
            _millions(system.parameters),
            _interval(system.wer_corpus, ".1f", 100),
            "" if gap is None else _interval(gap.wer_points, "+.1f"),
            _percent(system.no_end_rate, 1),
            _interval(system.similarity, ".3f"),
            _interval(system.mos, ".2f"),
            *_speed(system),
        ]
        mark = ' class="ours"' if column.ours else ""
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr{mark}><th scope=row>{escape(column.name)}</th>{shown}</tr>")
    heads = (
        "system", "layers", "parameters", f"{report.metric} % [95 %]", "gap to teacher, points", "never ends",
        "similarity [95 %]", "MOS [95 %]", "LM-RTF", "RTF", "p50 / p95 s", "MB",
    )  # fmt: skip
    head = "".join(f"<th scope=col>{name}</th>" for name in heads)
    mos = next(iter(report.systems.values())).mos_predictor
    floor = (
        "" if report.reference_wer is None else f", {_percent(report.reference_wer, 1)} on recordings through the codec"
    )
    others = report.other_voice_similarity
    floor += "" if others is None else f"; similarity of the teacher to other voices {others:.3f}"
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f'</table></div><p class="small">{report.utterances} test sentences; recogniser {escape(report.asr)}, '
        f"normaliser {report.normalizer}{floor}; MOS predicted by {escape(mos)}; {escape(report.machine)}; test set "
        f"{escape(report.test_set_sha256[:12])}.</p>"
    )


def _speed(system: SystemResult) -> list[str]:
    speed = system.speed
    return [
        f"{speed.lm_rtf:.3f}", f"{speed.end_to_end_rtf:.3f}", f"{speed.latency_p50_s:.2f} / {speed.latency_p95_s:.2f}",
        f"{speed.peak_memory_mb:.0f}",
    ]  # fmt: skip


def _interval(value: Interval, form: str, scale: float = 1, unit: str = "") -> str:
    if not math.isfinite(value.value):
        return "not measured"
    number, low, high = (format(scale * v, form) for v in (value.value, value.low, value.high))
    return f"{number}{unit} [{low}, {high}]"


def _percent(share: float, digits: int, sign: str = "") -> str:
    return f"{100 * share:{sign}.{digits}f} %"


def _weights(student: SystemResult, teacher: SystemResult) -> str:
    if student.weight_mb is None or teacher.weight_mb is None:
        return ""
    return f"; weights {student.weight_mb:.0f} of {teacher.weight_mb:.0f} MB"


def _times(slow: float, fast: float) -> str:
    """2.00 times where the second takes half as long."""
    ratio = slow / fast if fast else math.nan
    return f"{ratio:.2f}\N{MULTIPLICATION SIGN}" if math.isfinite(ratio) else "not measured"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"
