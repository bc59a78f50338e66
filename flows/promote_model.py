"""Decides about a registered version again, or returns production to the version before.

python -m flows.promote_model --version 3
python -m flows.promote_model --roll-back
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.promotion import judge
from slimtts.results import EvaluationReport
from tasks.registry import EVALUATION_RUN, decide, production_version, roll_back
from tasks.tracking import mlflow_client, tracking_uri
from tasks.workspace import CHECKOUT, compose_params

RUNS = CHECKOUT / "runs"


@flow(name="promote-model")
def promote_model(version: str = "", overrides: Sequence[str] = (), runs_root: Path = RUNS) -> str:
    """Judges `version` by today's gate and promotes it if it passes; without a version, rolls back.

    Returns:
        The version that is in production afterwards ("" for none).
    """
    gate = compose_params("full", overrides).register_model
    client = mlflow_client(tracking_uri(runs_root))
    if not version:
        return roll_back(client, runs_root, gate.model_name)
    run_id = client.get_model_version(gate.model_name, version).tags[EVALUATION_RUN]
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, "evaluation/evaluation.json", folder)
        verdict = judge(EvaluationReport.read(Path(path)), gate)
    decide(client, runs_root, gate.model_name, version, verdict)
    get_run_logger().info("version %s: %s; %s", version, verdict.decision, " ".join(verdict.reasons))
    return production_version(client, gate.model_name) or ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote_model", description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--version", default="", help="number in the registry")
    choice.add_argument("--roll-back", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    options = parser.parse_args(arguments)
    try:
        production = promote_model(options.version, options.overrides, options.runs)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1
    print(f"in production: version {production or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
