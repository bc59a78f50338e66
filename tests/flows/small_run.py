"""A real run on the bundled teacher, cut down to seconds: data of a few utterances, and layers that are just chosen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from slimtts.workspace import Workspace
from tasks.workspace import prepare_workspace

SMALL = [
    "subset_data.max_share=0.002",
    "subset_data.selection_utterances=8",
    "subset_data.test_utterances=8",
    "score_layers.utterances=2",
    "score_layers.beam_width=2",
    "prune_layers.retained=[0, 4, 8]",
    "decoding.max_new_tokens=32",
    "distill_student.steps=8",
    "distill_student.tokens_per_step=256",
    "distill_student.checkpoint_every_steps=2",
    "distill_student.device=cpu",
    "distill_student.control=false",
    "evaluate_student.utterances=2",
    "evaluate_student.mos_utterances=1",
    "evaluate_student.speed_utterances=1",
    "evaluate_student.bootstrap_samples=50",
]


def small_run(runs: Path) -> Workspace:
    """A workspace with the outputs of subset_data and prune_layers."""
    workspace = Workspace(prepare_workspace("small", "demo", SMALL, runs))
    for stage in ("subset_data", "prune_layers"):
        slimtts(stage, workspace)
    return workspace


def copy_run(workspace: Workspace, runs: Path, *overrides: str) -> Workspace:
    """The same data and pruned model in another workspace, with other knobs for what follows."""
    copied = Workspace(prepare_workspace("copy", "demo", [*SMALL, *overrides], runs))
    for folder in ("data", "pruned"):
        shutil.copytree(workspace.root / folder, copied.root / folder)
    return copied


def slimtts(stage: str, workspace: Workspace, *options: str) -> None:
    """The stage's command, on one thread so that its numbers can be compared to the byte."""
    command = [sys.executable, "-m", "slimtts.cli", stage, "--threads", "1", *options]
    subprocess.run(command, cwd=workspace.root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
