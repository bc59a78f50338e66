"""Pictures of a run, drawn when a stage's numbers are recorded; they lie in the workspace and on the run's page."""

from __future__ import annotations

import logging
from pathlib import Path

from slimtts.comparison.ranking import require_one_basis
from slimtts.comparison.runs import FinishedRun, read_run
from slimtts.errors import InvalidInputError
from slimtts.plots.drawing import draw_stage, draw_students
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)


def stage_plots(stage: str, workspace: Workspace) -> list[Path]:
    """Draws what a finished stage has numbers for; after an evaluation also the students of all comparable runs.

    Raises:
        InvalidInputError: a result of this run is damaged.
    """
    drawn = draw_stage(stage, workspace, workspace.plots)
    if stage == "evaluate_student":
        own = read_run(workspace.root, with_sentences=False)
        drawn += draw_students([own, *comparable_runs(workspace.root, own)], workspace.plots)
    return drawn


def comparable_runs(root: Path, own: FinishedRun) -> list[FinishedRun]:
    """The runs beside the one in `root` that were judged like it; others are named in the log and left out."""
    found = []
    for path in sorted(root.resolve().parent.glob("*/evaluation/evaluation.json")):
        folder = path.parents[1]
        if folder == root.resolve():
            continue
        try:
            other = read_run(folder, with_sentences=False)
            require_one_basis([own, other])
        except InvalidInputError as error:
            logger.info("%s is not drawn beside %s: %s", folder.name, own.name, error)
        else:
            found.append(other)
    return found
