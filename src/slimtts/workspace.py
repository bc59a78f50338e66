"""Where the stages of one run read and write: one folder a run, the names that dvc.yaml declares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STAGES = ("subset_data", "score_layers", "prune_layers", "distill_student", "evaluate_student", "register_model")


@dataclass(frozen=True)
class Workspace:
    """Paths of one run below `root`."""

    root: Path

    @property
    def params(self) -> Path:
        """params.yaml of this run."""
        return self.root / "params.yaml"

    @property
    def data(self) -> Path:
        """subset_data: train.jsonl, selection.jsonl, test.jsonl, prompts.json, report.json.

        recorded.jsonl holds the prompts of selection and test where train.jsonl holds the teacher's speech only.
        """
        return self.root / "data"

    @property
    def speaking_progress(self) -> Path:
        """subset_data: what the teacher has spoken, kept between attempts."""
        return self.root / "progress" / "subset_data"

    @property
    def encoding_progress(self) -> Path:
        """subset_data: codes of recordings, kept between attempts."""
        return self.root / "progress" / "subset_codes"

    @property
    def scores(self) -> Path:
        """score_layers: scores.json, scores.png."""
        return self.root / "scores"

    @property
    def scoring_progress(self) -> Path:
        """score_layers: finished batches, kept between attempts."""
        return self.root / "progress" / "score_layers"

    @property
    def pruned(self) -> Path:
        """prune_layers: plan.json and the model."""
        return self.root / "pruned"

    @property
    def student(self) -> Path:
        """distill_student: student/, control/, report.json, *.jsonl curves."""
        return self.root / "student"

    @property
    def checkpoints(self) -> Path:
        """distill_student: training checkpoints, kept between attempts."""
        return self.root / "progress" / "distill_student"

    @property
    def evaluation(self) -> Path:
        """evaluate_student: evaluation.json, utterances.jsonl, table.md, kept.json, audio/."""
        return self.root / "evaluation"

    @property
    def evaluation_progress(self) -> Path:
        """evaluate_student: what finished systems said, kept between attempts."""
        return self.root / "progress" / "evaluate_student"

    @property
    def plots(self) -> Path:
        """Pictures of what the stages measured; they can be drawn again."""
        return self.root / "plots"

    @property
    def release(self) -> Path:
        """register_model: release.json, model/, card.md."""
        return self.root / "release"
