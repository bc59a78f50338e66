"""One thing that was looked at, and how all of them are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Literal

from slimtts.printable import printable

State = Literal["ok", "missing", "off"]


@dataclass(frozen=True)
class Finding:
    """`off` is what nobody asked for; `is_needed` is what the bundled demo cannot do without."""

    topic: str
    name: str
    state: State
    detail: str
    next_step: str = ""
    is_needed: bool = False


def blockers(findings: Sequence[Finding]) -> list[Finding]:
    """What keeps the bundled demo from running."""
    return [finding for finding in findings if finding.is_needed and finding.state == "missing"]


def as_json(findings: Sequence[Finding]) -> str:
    """For programs."""
    ready = not blockers(findings)
    return json.dumps({"demo_ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=1)


def as_text(findings: Sequence[Finding]) -> str:
    """For people: a paragraph a topic, columns aligned, what to do below what is missing."""
    width = max(len(finding.name) for finding in findings)
    paragraphs = []
    for topic, rows in groupby(findings, lambda finding: finding.topic):
        lines = [topic]
        for row in rows:
            lines.append(f"  {row.state:<7}  {row.name:<{width}}  {printable(row.detail)}".rstrip())
            if row.next_step:
                lines.append(f"  {'':<7}  {'':<{width}}  -> {printable(row.next_step)}")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)
