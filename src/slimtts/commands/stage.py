"""`slimtts subset_data` to `slimtts register_model`: one stage in the workspace of a run."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.workspace import Workspace

SHARED_STAGES = ("score_layers", "evaluate_student")  # have work for several processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, with what, and how."""
    parser.add_argument("--workspace", type=Path, default=Path(), help="folder of the run (default: here)")
    parser.add_argument("--params", type=Path, help="default: params.yaml of the workspace")
    parser.add_argument("--threads", type=int, help="processor threads (default: all)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and the log on stderr")
    parser.add_argument(
        "--help-out",
        action="store_true",
        help=f"work beside others that do; the stage itself uses what is done ({', '.join(SHARED_STAGES)})",
    )


def run(options: argparse.Namespace) -> None:
    """Runs it.

    Raises:
        InvalidInputError: a stage that has no work for several processes was asked to help out.
    """
    if options.help_out and options.command not in SHARED_STAGES:
        raise InvalidInputError("--help-out", options.command, ", ".join(SHARED_STAGES), "leave it out")
    run_stage(
        options.command,
        Workspace(options.workspace),
        options.params,
        options.threads,
        options.help_out,
        options.json,
    )


def run_stage(
    stage: str,
    workspace: Workspace,
    params_file: Path | None,
    threads: int | None,
    helps_out: bool = False,
    as_json: bool = False,
) -> None:
    """One stage, alone in its workspace, not outliving the process that asked for it.

    One that helps out takes no lock: it fills the stage's progress folder, and writes no result.
    """
    from slimtts.distill.ranks import current_rank, lock_name
    from slimtts.params import load_params
    from slimtts.process_guard import die_with_parent, sole_writer
    from slimtts.progress import heartbeat, watched

    logging.basicConfig(stream=sys.stderr if as_json else sys.stdout, format="%(message)s")
    logging.getLogger("slimtts").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(watched)
    die_with_parent()
    params = load_params(params_file or workspace.params)
    rank = current_rank()
    alive = heartbeat(stage) if rank is None or rank.number == 0 else nullcontext()
    with nullcontext() if helps_out else sole_writer(workspace.root, lock_name(stage)), alive:
        if threads:
            import torch

            torch.set_num_threads(threads)
        step = importlib.import_module(f"slimtts.stages.{stage}")
        result = getattr(step, "fill_progress" if helps_out else stage)(params, workspace)
    if as_json and result is not None:
        print(result.model_dump_json(indent=2, ensure_ascii=True))
