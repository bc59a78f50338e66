"""The table people read first: teacher, pruned, student, control."""

from __future__ import annotations

from slimtts.results import EvaluationReport, Interval

HEADER = (
    "| system | layers | parameters | WER % [95 %] | gap to teacher, points [95 %] | no END % | similarity | MOS "
    "| LM-RTF | RTF | tokens/s |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def evaluation_table(report: EvaluationReport) -> str:
    """Markdown."""
    gaps = {g.system: g.wer_points for g in report.gaps if g.baseline == "teacher"}
    rows = []
    for name, s in report.systems.items():
        gap = gaps.get(name)
        shown = "" if gap is None else f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
        rows.append(
            f"| {name} | {s.num_layers} | {s.parameters / 1e6:.1f} M | {_percent(s.wer_corpus)} | {shown} "
            f"| {100 * s.no_end_rate:.1f} | {s.similarity.value:.3f} | {s.mos.value:.2f} | {s.speed.lm_rtf:.3f} "
            f"| {s.speed.end_to_end_rtf:.3f} | {s.speed.tokens_per_s:.0f} |\n"
        )
    notes = (
        f"\n{report.utterances} sentences; recogniser {report.asr} ({report.normalizer}), on the codec's round trip of "
        f"the originals {100 * report.reference_wer:.1f} %; test set {report.test_set_sha256[:12]}; {report.machine}\n"
    )
    return HEADER + "".join(rows) + notes
