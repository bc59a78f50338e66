"""Published results that ours are drawn beside."""

from __future__ import annotations

from dataclasses import dataclass

SPADE = "SPADE, arXiv 2509.20802"


@dataclass(frozen=True)
class PublishedStudent:
    """A pruned and healed student against its own teacher; `wer_points` as its authors measured them."""

    teacher: str
    layers: int
    teacher_layers: int
    wer_points: float

    @property
    def depth_percent(self) -> float:
        """Of the teacher's layers."""
        return 100 * self.layers / self.teacher_layers


SPADE_STUDENTS = (
    PublishedStudent("LLaSA-1B", 8, 16, 0.72),
    PublishedStudent("CosyVoice 2", 12, 24, 0.43),
    PublishedStudent("CosyVoice 2", 9, 24, 0.79),
)
