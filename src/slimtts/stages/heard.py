"""What evaluate_student keeps of one system between attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError
from slimtts.evaluation.systems import SpokenItem
from slimtts.evaluation.word_errors import WordErrors


@dataclass(frozen=True)
class Heard:
    """What is kept of one system, beside its codes; not its speed, which is measured when nothing else runs."""

    num_layers: int
    parameters: int
    weight_mb: float
    weights_sha256: str
    asr: str
    mos_predictor: str
    similarity_predictor: str
    items: list[SpokenItem]
    groups: dict[str, list[SpokenItem]]

    @classmethod
    def read(cls, folder: Path) -> Heard:
        """As `Hearing.hear_system` left it."""
        kept = json.loads((folder / "heard.json").read_text())
        items, groups = kept.pop("items"), kept.pop("groups")
        return cls(**kept, items=_items(items), groups={name: _items(rows) for name, rows in groups.items()})


def _items(rows: list[dict[str, Any]]) -> list[SpokenItem]:
    return [SpokenItem(**row | {"errors": WordErrors(**row["errors"])}) for row in rows]


def one_set_of_judges(heard: Mapping[str, Heard]) -> Heard:
    """The teacher's, which names the judges of all.

    Raises:
        InvalidInputError: kept results are of other judges, as after an upgrade of their packages.
    """
    teacher = heard["teacher"]
    names = (teacher.asr, teacher.similarity_predictor, teacher.mos_predictor)
    for name, own in heard.items():
        if (own.asr, own.similarity_predictor, own.mos_predictor) != names:
            raise InvalidInputError(
                f"what was heard of {name}", ", ".join((own.asr, own.similarity_predictor, own.mos_predictor)),
                f"the judges of the teacher: {', '.join(names)}", "delete progress/evaluate_student and run again",
            )  # fmt: skip
    return teacher
