"""What a run would do before it is started: which stages are up to date, what speaks against it, what it costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from slimtts.errors import InvalidInputError
from slimtts.params import Params, load_params
from slimtts.workspace import STAGES, Workspace
from tasks.stage_runner import BAD_INPUT_EXIT_CODE, StageError, stage_environment, stale_stages


def finished_stages(workspace: Path, params: Params) -> list[str]:
    """Stages of a former start that these params leave as they are: all before the first that has work to do."""
    if not (workspace / "dvc.lock").is_file():
        return []
    stale, declared = stale_stages(workspace), yaml.safe_load((workspace / "dvc.yaml").read_text())["stages"]
    former, wanted = (one.model_dump(mode="json") for one in (load_params(Workspace(workspace).params), params))
    finished = []
    for stage in STAGES:
        knobs = declared[stage].get("params", [])
        if stage in stale or any(_at(former, knob) != _at(wanted, knob) for knob in knobs):
            break
        finished.append(stage)
    return finished


def _at(values: dict[str, Any], knob: str) -> Any:
    """`decoding.max_new_tokens` or a whole section."""
    return reduce(lambda inner, key: inner[key], knob.split("."), values)


class RefusedPlanError(InvalidInputError):
    """The line with which the package refused a run, as it is."""

    def __init__(self, line: str) -> None:
        super().__init__("plan", line, "a run that can start", "mend it and plan again")
        self.line, self.args = line, (line,)  # args make it again where it was pickled

    def __str__(self) -> str:
        return self.line


_checked: set[tuple[Path, str]] = set()


def check_run(workspace: Path, params: Params) -> None:
    """Returns when nothing speaks against the run; a process of its own opens teacher, data and judges.

    The same question is asked once by a process: the command asks before a server starts, its flow asks again.

    Raises:
        InvalidInputError: the line that the run itself would end with.
        StageError: the check did not finish.
    """
    question = (workspace.resolve(), params.model_dump_json())
    if question in _checked:
        return
    finished = finished_stages(workspace, params)
    if len(finished) < len(STAGES):
        _ask(workspace, params, ["--finished", ",".join(finished), "--check"])
    _checked.add(question)


def print_plan(workspace: Path, params: Params, as_json: bool) -> None:
    """Prints the plan; a process of its own loads the teacher and measures.

    Raises:
        InvalidInputError: the run itself would be refused.
    """
    finished = ",".join(finished_stages(workspace, params))
    _ask(workspace, params, ["--finished", finished, *(["--json"] if as_json else [])])


def _ask(workspace: Path, params: Params, arguments: Sequence[str]) -> None:
    """`slimtts plan` with these params, which it reads from a file of their own."""
    with tempfile.TemporaryDirectory(prefix="slimtts-plan-") as folder:
        own = Path(folder) / "params.yaml"
        own.write_text(yaml.safe_dump(params.model_dump(mode="json")))
        command = [sys.executable, "-m", "slimtts.cli", "plan", "--workspace", str(workspace.absolute())]
        command += ["--params", str(own), *arguments]
        sys.stdout.flush()
        done = subprocess.run(command, env=stage_environment(), stderr=subprocess.PIPE, text=True)
    if done.returncode == BAD_INPUT_EXIT_CODE:
        raise RefusedPlanError(_last_line(done.stderr))
    if done.returncode:
        raise StageError("plan", _last_line(done.stderr), done.returncode)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("slimtts: ") if lines else "no message"
