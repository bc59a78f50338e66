"""Pictures of MLflow's and Prefect's pages over real runs, for the documentation: headless Chromium, loopback only.

python -m infra.screenshots --out docs/images                      makes small runs first: about ten minutes
python -m infra.screenshots --out docs/images --runs runs          of runs that are there
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from slimtts.errors import InvalidInputError, MissingToolError, SlimttsError
from tasks.experiment_view import SHARE_KEY
from tasks.tracking import EXPERIMENT, mlflow_client

if TYPE_CHECKING:
    from mlflow.entities import Run
    from playwright.sync_api import Browser, Page

WIDTH = 1600
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# MLflow's assistant covers a third of the page until it is closed, and its menu begins with what chat models need.
MLFLOW_CHOICES = {
    "mlflow.assistant.panelOpen_v1": "false",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.workflowType_v1": '"machine_learning"',
}
SMALL = (
    "subset_data.test_utterances=60", "subset_data.selection_utterances=24", "score_layers.utterances=12",
    "score_layers.beam_width=2", "distill_student.steps=80", "distill_student.tokens_per_step=1024",
    "distill_student.control=false", "evaluate_student.utterances=60", "evaluate_student.mos_utterances=6",
    "evaluate_student.speed_utterances=4", "evaluate_student.agreement_utterances=24",
    "evaluate_student.bootstrap_samples=500",
)  # fmt: skip
PATIENCE_S = 180.0
DRAWN_S = 3.0  # what charts take after their data have come
COLOURS = 128  # of a palette: a page of text and charts looks the same at a third of the size


@dataclass(frozen=True)
class Shot:
    """One picture: a page, a text that is there when it is ready, and what is clicked before."""

    name: str
    address: str
    ready: str
    clicks: tuple[str, ...] = ()
    height: int = 900


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m infra.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for the PNG files")
    parser.add_argument("--runs", type=Path, help="where runs and their mlflow.db are (default: small ones are made)")
    parser.add_argument("--prefect-home", type=Path, help="folder of Prefect's database (default: Prefect's own)")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM", "chromium"), help="program to draw with")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="slimtts-shots-") as scratch:
            home = options.prefect_home or Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
            runs = options.runs
            if not runs:
                runs, home = Path(scratch) / "runs", Path(scratch) / "prefect"
                make_runs(runs, home)
            taken = take_all(runs.resolve(), home.resolve(), options.out, options.chromium)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{path}: {path.stat().st_size / 1000:.0f} kB" for path in taken))
    return 0


def make_runs(runs: Path, prefect_home: Path) -> None:
    """Three depths, and another loss at one of them, by the flows themselves; too short to speak well."""
    environment = {**os.environ, "PREFECT_HOME": str(prefect_home)}
    changes = [word for change in SMALL for word in ("--set", change)]
    for flow in (
        ["flows.sweep_depths", "--name", "depths", "--depths", "4", "6", "8"],
        ["flows.compress_model", "--name", "spade", "--set", "prune_layers.keep_layers=6", "--set",
         "distill_student.preset=spade"],
    ):  # fmt: skip
        subprocess.run([sys.executable, "-m", *flow, "--runs", str(runs), *changes], env=environment, check=True)


def take_all(runs: Path, prefect_home: Path, out: Path, chromium: str) -> list[Path]:
    """Every picture that the store has something to show for.

    Raises:
        InvalidInputError: no store, or no evaluated runs in it.
        MissingToolError: Chromium or Playwright is missing.
    """
    program = shutil.which(chromium)
    if not program:
        raise MissingToolError(chromium, "pages are drawn by it", "install Chromium, or name it with --chromium")
    store = runs / "mlflow.db"
    if not store.is_file():
        raise InvalidInputError("--runs", f"no {store}", "a folder with runs and their mlflow.db", "correct --runs")
    with serving_mlflow(runs) as mlflow, serving_prefect(prefect_home) as prefect, browsing(program) as browser:
        shots = [*mlflow_shots(mlflow, evaluated_runs(mlflow)), *prefect_shots(prefect)]
        return [take(browser, shot, out) for shot in shots]


def evaluated_runs(address: str) -> list[Run]:
    """From the best to the worst.

    Raises:
        InvalidInputError: there are none.
    """
    client = mlflow_client(address)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    order = ["metrics.`compare/wer_percent` ASC"]
    found = client.search_runs([experiment.experiment_id], order_by=order) if experiment else []
    evaluated = [run for run in found if "compare/wer_percent" in run.data.metrics]
    if not evaluated:
        raise InvalidInputError("MLflow", "no evaluated run", "at least one", "let a run finish first")
    return evaluated


def mlflow_shots(address: str, runs: Sequence[Run]) -> list[Shot]:
    """The table and the charts of all runs, a comparison, a run, and the registry where it holds a model."""
    experiment, best = runs[0].info.experiment_id, runs[0].info.run_id
    pages = f"{address}/#/experiments/{experiment}"
    chosen = quote(json.dumps([run.info.run_id for run in runs]))
    compared = f"{address}/#/compare-runs?runs={chosen}&experiments={quote(json.dumps([experiment]))}"
    shots = [
        Shot("mlflow-runs", f"{pages}/runs?viewStateShareKey={SHARE_KEY}", "compare/wer_percent"),
        Shot(
            "mlflow-charts",
            f"{pages}/runs?compareRunsMode=CHART&viewStateShareKey={SHARE_KEY}",
            "Best student",
            height=1100,
        ),
        Shot("mlflow-compare", compared, "Run details", ("Visualizations", "Run details", "Show diff only"), 1200),
        Shot("mlflow-run", f"{pages}/runs/{best}", "Metrics"),
    ]
    registered = [model.name for model in mlflow_client(address).search_registered_models()]
    return shots + [
        Shot("mlflow-registry", f"{address}/#/models/{name}", "Versions", ("Tags",)) for name in registered[:1]
    ]


def prefect_shots(address: str) -> list[Shot]:
    """The newest finished flow run; none where the server knows none."""
    wanted = {"sort": "END_TIME_DESC", "limit": 1, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    request = urllib.request.Request(  # noqa: S310 - of this process' own server on loopback
        f"{address}/api/flow_runs/filter", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        found = json.load(answer)
    return [Shot("prefect-run", f"{address}/runs/flow-run/{run['id']}", "Task Runs") for run in found]


def take(browser: Browser, shot: Shot, out: Path) -> Path:
    """Opens the page, waits until it is drawn, writes a PNG of few colours."""
    from PIL import Image

    page: Page = browser.new_page(viewport={"width": WIDTH, "height": shot.height})
    choices = "".join(f"localStorage.setItem({json.dumps(k)}, {json.dumps(v)});" for k, v in MLFLOW_CHOICES.items())
    page.add_init_script(choices)
    page.goto(shot.address, wait_until="domcontentloaded")
    page.get_by_text(shot.ready).first.wait_for(timeout=1000 * PATIENCE_S)
    for text in shot.clicks:
        page.get_by_text(text, exact=True).first.click()
    page.wait_for_timeout(1000 * DRAWN_S)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{shot.name}.png"
    picture.quantize(COLOURS).save(path, optimize=True)
    return path


@contextmanager
def browsing(program: str) -> Iterator[Browser]:
    """A headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise MissingToolError("playwright", "it drives Chromium", "pip install playwright") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving_mlflow(runs: Path) -> Iterator[str]:
    """MLflow over the runs' store, at the address that the block gets."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{runs / 'mlflow.db'}", "--artifacts-destination", str(runs / "mlartifacts"),
    ]  # fmt: skip
    with running(
        command, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, f"http://127.0.0.1:{port}", "/health"
    ) as url:
        yield url


@contextmanager
def serving_prefect(home: Path) -> Iterator[str]:
    """Prefect over the database of the flows, at the address that the block gets."""
    port = free_port()
    settings = {
        "PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port), "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "prefect", "server", "start"]
    with running(command, settings, f"http://127.0.0.1:{port}", "/api/health") as url:
        yield url


@contextmanager
def running(command: Sequence[str], settings: dict[str, str], url: str, health: str) -> Iterator[str]:
    """A server, from the moment it answers to the end of the block.

    Raises:
        MissingToolError: it ended, or did not answer in time.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not answers(url + health):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    last = (log.read().decode(errors="replace").strip().splitlines() or ["no output"])[-1]
                    raise MissingToolError(command[2], last, "start it by hand to see why")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    """Whether a server is there and well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - of this process' own server on loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A loopback port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
