"""Questions about registered versions: `history`, `lineage VERSION`, `restore VERSION --into FOLDER`.

python -m tasks.versions lineage 3 --json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from slimtts.console import exit_code_of
from slimtts.errors import InvalidInputError
from slimtts.promotion_history import event_line, overdue
from tasks.checkouts import CHECKOUT
from tasks.lineage import lineage_text, version_lineage
from tasks.promotion_log import PromotionLog
from tasks.restoration import restore_version
from tasks.server_errors import exit_code
from tasks.service_checks import check_tracking
from tasks.tracking import mlflow_client, tracking_uri
from tasks.workspace import compose_params

RUNS = CHECKOUT / "runs"


def history(log: PromotionLog, as_json: bool) -> str:
    """Every decision, from the oldest to the newest, and questions whose time is over."""
    seen = log.read()
    events = [*seen.events, *overdue(seen.events, datetime.now(UTC))]
    if as_json:
        return json.dumps([event.model_dump(mode="json") for event in events], indent=1)
    return "\n".join([*map(event_line, events), f"in production: version {seen.production or 'none'}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 it failed, 2 something that only you can mend."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # whoever waits for an answer wants it soon
    return exit_code(lambda: _answer(options))


def _answer(options: argparse.Namespace) -> int:
    model = options.model or compose_params("full", ()).register_model.model_name
    uri = tracking_uri(options.runs)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InvalidInputError("registry", f"no {uri}", "one that holds versions", "correct --runs")
    check_tracking(options.runs)
    client = mlflow_client(uri)
    if options.question == "history":
        print(history(PromotionLog(client, options.runs, model), options.json))
    elif options.question == "lineage":
        found = version_lineage(client, model, options.version)
        print(found.model_dump_json(indent=1, ensure_ascii=True) if options.json else lineage_text(found))
    else:
        logger = logging.getLogger("restore")
        lineage = restore_version(client, model, options.version, options.into, options.runs, logger, options.overrides)
        student = lineage.student_sha256[:12]
        print(f"{options.into}: {model} version {options.version}, student {student}, as registered")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.versions", description=__doc__.splitlines()[0])
    questions = parser.add_subparsers(dest="question", required=True)
    told = questions.add_parser("history", help="who moved production when, why, from which version to which")
    from_where = questions.add_parser("lineage", help="where a version comes from")
    restored = questions.add_parser("restore", help="make the workspace of a version again")
    for question in (told, from_where, restored):
        question.add_argument("--model", default="", help="name in the registry (default: as in params.yaml)")
        question.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    for question in (told, from_where):
        question.add_argument("--json", action="store_true", help="for programs")
    for question in (from_where, restored):
        question.add_argument("version", help="number in the registry")
    restored.add_argument("--into", type=Path, required=True, help="folder to make")
    restored.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
