"""Students of several depths from one teacher: layers are scored once, then each depth is a run of its own.

python -m flows.sweep_depths --name depths --depths 3 4 6
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import Field

from flows.compress_model import RUNS, checked_plan, compress_model, wait_if_recovered
from slimtts.console import exit_code_of
from slimtts.errors import SlimttsError
from slimtts.printable import printable_lines
from tasks.artifacts import show_links
from tasks.checkouts import code_revision
from tasks.command_line import run_command
from tasks.flow_parameters import Depth, Override, Profile, RunName, fill_name, filled_name
from tasks.stages import score_layers, subset_data
from tasks.sweep_comparison import compare_depths
from tasks.tracking import tracked_run
from tasks.workspace import CHECKOUT, check_place, claimed_workspace, compose_params

Depths = Annotated[list[Depth], Field(min_length=1, max_length=50)]


@flow(name="sweep-depths", flow_run_name=filled_name)
def sweep_depths(
    name: RunName,
    depths: Depths,
    profile: Profile = "demo",
    overrides: Sequence[Override] = (),
    runs_root: Path = RUNS,
    checkout: Path = CHECKOUT,
    revision: str = "",
) -> Path:
    """Scores the layers, makes and judges a student of each depth, compares them; returns the scoring run's folder.

    A depth that fails leaves the others alone; the flow fails at the end and names it. No depth is promoted, unless
    the overrides say register_model.promote=true: the choice among them is a person's.

    Args:
        name: Folder of the scoring run; each depth has one beside it. {date} and {id} are of the flow run.
        depths: Layers of each student at most.
        profile: File in flows/profiles: demo takes minutes, full is params.yaml as it is.
        overrides: Changes to the profile, each as section.key=value.
        runs_root: Where runs live.
        checkout: Where the code lies.
        revision: Commit, branch or tag whose code runs, in a copy of its own; empty for the code there, edits included.
    """
    name, logger = fill_name(name), get_run_logger()
    overrides = ["register_model.promote=false", *overrides]
    failed: dict[int, str] = {}
    with (
        claimed_workspace(name, profile, overrides, runs_root, checkout, revision, wait_if_recovered()) as scored,
        checked_plan(scored, max(depths)),
        tracked_run(scored, profile) as sweep,
    ):
        show_links(sweep, logger)
        subset_data(sweep)
        score_layers(sweep)
        students = {depth: f"{name}-keep-{depth}" for depth in sorted(set(depths))}
        for depth, student in students.items():
            state = compress_model(
                student, profile, overrides, runs_root, checkout,
                revision=code_revision(scored) if revision else "", keep_layers=depth, scores_of=name,
                return_state=True,
            )  # fmt: skip
            if not state.is_completed():
                failed[depth] = f"{depth} layers: {state.message}"
        finished = {depth: scored.parent / student for depth, student in students.items() if depth not in failed}
        compare_depths(sweep, finished, list(failed))
        if failed:
            raise SlimttsError(
                f"sweep {name}: observed {len(failed)} of {len(students)} depths failed: {'; '.join(failed.values())}; "
                "next: mend the cause and start the sweep again, it goes on where it stopped"
            )
    return scored


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a depth failed, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.sweep_depths", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="depths", help="folder below the runs; a second start continues there")
    parser.add_argument("--depths", type=int, nargs="+", required=True, metavar="LAYERS", help="of each student")
    parser.add_argument("--profile", default="demo", help="file in flows/profiles")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    parser.add_argument("--revision", default="", help="run the code of this commit (default: as it lies here)")
    options = parser.parse_args(arguments)

    def check() -> None:
        for name in (options.name, *(f"{options.name}-keep-{depth}" for depth in options.depths)):
            check_place(options.runs, name)
        for depth in options.depths:
            compose_params(options.profile, [*options.overrides, f"prune_layers.keep_layers={depth}"])

    def sweep() -> int:
        scored = sweep_depths(
            options.name, options.depths, options.profile, options.overrides, options.runs, revision=options.revision
        )
        print(printable_lines((scored / "comparison.md").read_text()))
        return 0

    return run_command(sweep, "the same command goes on where it stopped", options.runs, check)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
