"""The table people read first: teacher, pruned, student, control, and the student's variants."""

from __future__ import annotations

from slimtts.results import EvaluationReport, Interval

HEADER = (
    "| system | layers | parameters | {metric} % [95 %] | gap to teacher, points [95 %] | no END % | similarity | MOS "
    "| LM-RTF | RTF | tokens/s | weights, MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


GROUP_HEADER = (
    "\n| group | system | sentences | {metric} % [95 %] | mean % [95 %] | no END % |\n|---|---|---|---|---|---|\n"
)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def evaluation_table(report: EvaluationReport) -> str:
    """Markdown."""
    gaps = {g.system: g.wer_points for g in report.gaps if g.baseline == "teacher"}
    rows = []
    for name, s in report.systems.items():
        gap = gaps.get(name)
        weights = "" if s.weight_mb is None else f"{s.weight_mb:.1f}"
        shown = "" if gap is None else f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
        rows.append(
            f"| {name} | {s.num_layers} | {s.parameters / 1e6:.1f} M | {_percent(s.wer_corpus)} | {shown} "
            f"| {100 * s.no_end_rate:.1f} | {s.similarity.value:.3f} | {s.mos.value:.2f} | {s.speed.lm_rtf:.3f} "
            f"| {s.speed.end_to_end_rtf:.3f} | {s.speed.tokens_per_s:.0f} | {weights} |\n"
        )
    return HEADER.format(metric=report.metric) + "".join(rows) + _notes(report) + _groups(report)


def _notes(report: EvaluationReport) -> str:
    original = (
        ""
        if report.reference_wer is None
        else (f", on the codec's round trip of the originals {100 * report.reference_wer:.1f} %")
    )
    others = report.other_voice_similarity
    likeness = "" if others is None else f"; similarity of the teacher to other voices {others:.3f}"
    notes = (
        f"\n{report.utterances} sentences; recogniser {report.asr} ({report.normalizer}){original}{likeness}; "
        f"test set {report.test_set_sha256[:12]}; {report.machine}\n"
    )
    if report.benchmark == "nano":
        return notes
    means = ", ".join(f"{name} {_percent(system.wer_mean)}" for name, system in report.systems.items())
    deviations = " ".join(report.deviations) or "none"
    return (
        f"{notes}\nBenchmark {report.benchmark}, {report.language}; mean of the sentences' {report.metric} %: {means}; "
        f"similarity by {report.similarity_predictor}. Other than published: {deviations}\n"
    )


def _groups(report: EvaluationReport) -> str:
    """Rows of their own: hard sentences, and the best of several attempts, are not the single attempts above."""
    if not report.groups:
        return ""
    rows = [
        f"| {g.group} | {g.system} | {g.utterances} | {_percent(g.wer_corpus)} | {_percent(g.wer_mean)} "
        f"| {100 * g.no_end_rate:.1f} |\n"
        for g in report.groups
    ]
    caveats = {group.group.split("/")[0]: group.caveat for group in report.groups if group.caveat}
    notes = [f"\n{name}: {caveat}\n" for name, caveat in caveats.items()]
    return GROUP_HEADER.format(metric=report.metric) + "".join(rows + notes)
