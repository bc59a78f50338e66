"""The run's plots on its page, each with a line that says what to look for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path

from slimtts.plots.drawing import draw_run
from slimtts.workspace import Workspace

CAPTIONS = {
    "importance.png": "What each layer is worth: low ones were dropped",
    "training.png": "Losses while the student was healed",
    "durations.png": "How long the sentences take, by the teacher and by the student",
    "agreement.png": "How often the student says what the teacher would, along a sentence",
    "wer_against_depth.png": "Errors against depth, over all comparable runs",
    "wer_against_cost.png": "Errors against speed and memory, over all comparable runs",
}
OF_SEVERAL_RUNS = ("wer_against_depth.png", "wer_against_cost.png")  # drawn by the flow, which sees the other runs


def draw_plots(workspace: Workspace, out: Path) -> list[Path]:
    """PNG files in the folder `out`: those of this run, and those of several runs where the flow has drawn them."""
    drawn = draw_run(workspace, out)
    for name in OF_SEVERAL_RUNS:
        if (workspace.plots / name).is_file():
            out.mkdir(parents=True, exist_ok=True)
            drawn.append(shutil.copyfile(workspace.plots / name, out / name))
    return drawn


def plots_section(addresses: Mapping[str, str]) -> str:
    """HTML; `addresses` of the files by their names."""
    if not addresses:
        return ""
    figures = "".join(
        f'<figure><img src="{escape(address)}" alt="{escape(_caption(name))}" loading="lazy">'
        f"<figcaption>{escape(_caption(name))}</figcaption></figure>"
        for name, address in addresses.items()
    )
    shown = f'<h2 id="plots-title">Plots</h2><div class="plots">{figures}</div>'
    return f'<section aria-labelledby="plots-title">{shown}</section>'


def _caption(name: str) -> str:
    return CAPTIONS.get(name, name.removesuffix(".png"))
