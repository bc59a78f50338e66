"""The comparison as people read it: one table of students, one of paired tests, and what differs between the runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from slimtts.comparison.ranking import Comparison, Contender, PairedTest
from slimtts.printable import printable
from slimtts.results import Interval

STUDENT_COLUMNS = (
    "student", "layers", "parameters", "WER % [95 %]", "minus teacher, points", "no END %", "similarity", "MOS",
    "LM-RTF", "RTF", "weights, MB", "memory, MB", "at equal depth",
)  # fmt: skip
TEST_COLUMNS = ("pair", "WER, points [95 %]", "p", "p (Holm)", "similarity", "MOS")
MARKS = {
    "best": "**best**",
    "not told apart from the best": "as good",
    "worse than the best": "worse",
    "alone at its depth": "",
}


def comparison_text(comparison: Comparison) -> str:
    """Markdown, aligned so that a terminal shows it as well."""
    parts = [as_table(STUDENT_COLUMNS, map(_student_cells, comparison.students)), _basis_line(comparison)]
    if comparison.tests:
        parts.append(as_table(TEST_COLUMNS, map(_test_cells, comparison.tests)))
        parts.append(
            "Paired by sentence; p by sign flips, Holm's for all pairs together. Negative WER: the first is better.\n"
        )
    if comparison.differing_knobs:
        runs = list(dict.fromkeys(student.run for student in comparison.students))
        rows = ((knob, *(values[run] for run in runs)) for knob, values in comparison.differing_knobs.items())
        parts.append(as_table(("knob", *runs), rows))
    return "\n".join(parts)


def as_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown with columns of equal width; a bar inside a cell would end it and becomes a slash."""
    cells = [list(map(printable, columns)), *([printable(cell).replace("|", "/") for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _student_cells(student: Contender) -> list[str]:
    return [
        student.name,
        f"{student.layers} of {student.teacher_layers}",
        f"{student.parameters / 1e6:.1f} M ({100 * student.parameter_share:.0f} %)",
        _shown(student.wer, ".1f", 100),
        _shown(student.wer_gap_points, "+.1f"),
        f"{100 * student.no_end_rate:.1f}",
        f"{student.similarity.value:.3f}",
        f"{student.mos.value:.2f}",
        f"{student.lm_rtf:.3f} ({student.lm_speedup:.2f}x)",
        f"{student.end_to_end_rtf:.3f}",
        "" if student.weight_mb is None else f"{student.weight_mb:.1f}",
        f"{student.peak_memory_mb:.0f}",
        MARKS[student.standing],
    ]


def _test_cells(test: PairedTest) -> list[str]:
    return [
        f"{test.a} - {test.b}",
        _shown(test.wer_points, "+.1f"),
        f"{test.p_value:.4f}",
        f"{test.p_holm:.4f}",
        _shown(test.similarity, "+.3f"),
        _shown(test.mos, "+.2f") if test.mos else "",
    ]


def _basis_line(comparison: Comparison) -> str:
    basis, machines = comparison.basis, sorted({student.machine for student in comparison.students})
    line = (
        f"{comparison.utterances} sentences, test set {basis['test_set_sha256'][:12]}; {basis['metric']} by recogniser "
        f"{basis['asr']} ({basis['normalizer']}); teacher {basis['teacher'][:12]}; MOS by {basis['mos_predictor']}; "
        f"{'; '.join(machines)}\n"
    )
    if len(machines) > 1:
        line += "RTF and memory were measured on different machines: do not compare them.\n"
    return line


def _shown(interval: Interval, form: str, scale: float = 1.0) -> str:
    value, low, high = (format(scale * x, form) for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
