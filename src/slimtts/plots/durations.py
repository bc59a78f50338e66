"""How long each system speaks: the student beside its teacher sentence by sentence, and who never ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from slimtts.comparison.runs import Sentence
from slimtts.plots.style import GREY, RED, colour_of, label, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def durations_figure(systems: Mapping[str, Sequence[Sentence]]) -> Figure:
    """Left: seconds of student and teacher, crosses where the student never ended. Right: no-END rates."""
    figure, (pairs, no_end) = new_figure(panels=2)
    joined = list(zip(systems["teacher"], systems["student"], strict=True))
    longest = 1.05 * max((max(a.seconds, b.seconds) for a, b in joined), default=1.0)
    pairs.plot([0, longest], [0, longest], color=GREY, linewidth=0.8)
    for ended, marker, colour, name in (
        (True, ".", colour_of("student"), "student ended"),
        (False, "x", RED, "student never ended"),
    ):
        chosen = [(a.seconds, b.seconds) for a, b in joined if b.ended == ended]
        if chosen:
            x, y = zip(*chosen, strict=True)
            pairs.plot(x, y, linestyle="", marker=marker, color=colour, alpha=0.6, label=f"{name} ({len(chosen)})")
    pairs.set_xlim(0, longest)
    pairs.set_ylim(0, longest)
    label(pairs, "teacher, s", "student, s", f"Duration of {len(joined)} sentences")
    pairs.legend(frameon=False)
    rates = {name: 100 * sum(not s.ended for s in said) / len(said) for name, said in systems.items()}
    bars = no_end.bar(list(rates), list(rates.values()), color=[colour_of(name, systems) for name in rates])
    no_end.bar_label(bars, fmt="%.1f")
    no_end.set_ylim(0, max(1.0, 1.15 * max(rates.values())))
    label(no_end, "", "sentences that never end, %", "No END before the limit of codes")
    return figure
