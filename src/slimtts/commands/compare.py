"""`slimtts compare`: which student is best at equal depth, and is the difference more than chance."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from slimtts.commands.checkout import CHECKOUT, become
from slimtts.printable import printable, printable_lines
from slimtts.workspace import Workspace

MODULE = ("tasks.comparison",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which runs, and how to show them."""
    parser.add_argument(
        "names", nargs="+", metavar="RUN", help="a run's folder or its name below runs/; or an id or name in MLflow"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw the runs into this folder")
    parser.add_argument("--runs", type=Path, help="where runs live (default: runs/ of the checkout)")


def run(options: argparse.Namespace) -> None:
    """Compares folders here; where a name is no folder, the module of the checkout asks MLflow."""
    names = list(dict.fromkeys(options.names))
    folders = {name: local_folder(name, options.runs or CHECKOUT / "runs") for name in names}
    found = {name: folder for name, folder in folders.items() if folder}
    if len(found) == len(names):
        show(found, options.json, options.plots)
        return
    arguments = ["--json"] if options.json else []
    arguments += [f"--{name}={path.resolve()}" for name in ("plots", "runs") if (path := getattr(options, name))]
    become(
        [*MODULE, *arguments, "--", *(str(folder.resolve()) if folder else name for name, folder in folders.items())]
    )


def local_folder(name: str, runs: Path) -> Path | None:
    """The folder of a run that was evaluated, by its path or its name below `runs`; None when there is none."""
    for folder in (Path(name), runs / name):
        if (folder / "evaluation" / "evaluation.json").is_file():
            return folder
    return None


def short_names(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Folder by its own name; where two have the same, by the name that was given."""
    own = [folder.resolve().name for folder in folders.values()]
    return {
        name if own.count(folder.resolve().name) > 1 else folder.resolve().name: folder
        for name, folder in folders.items()
    }


def show(folders: Mapping[str, Path], as_json: bool, plots: Path | None) -> None:
    """Prints the comparison of the runs in these folders, by the names they were given, and draws them if asked to.

    Raises:
        InvalidInputError: a run is not evaluated, or the runs cannot be compared.
    """
    from slimtts.comparison.ranking import compare_runs
    from slimtts.comparison.runs import read_run
    from slimtts.comparison.table import comparison_text

    runs = {folder: read_run(folder, name) for name, folder in short_names(folders).items()}
    comparison = compare_runs(list(runs.values()))
    print(
        comparison.model_dump_json(indent=1, ensure_ascii=True)
        if as_json
        else printable_lines(comparison_text(comparison)),
        end="\n" if as_json else "",
    )
    if plots:
        from slimtts.plots.drawing import draw_run, draw_students

        drawn = draw_students(list(runs.values()), plots)
        for folder, run in runs.items():
            drawn += draw_run(Workspace(folder), plots / run.name.strip("/.").replace("/", "-"))
        print(f"{printable(plots)}: {len(drawn)} pictures", file=sys.stderr)
