"""What a run would do before it is started: which stages are up to date, and what the others cost."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from slimtts.errors import InvalidInputError
from slimtts.params import Params, load_params
from slimtts.workspace import STAGES, Workspace
from tasks.stage_runner import stage_environment, stale_stages


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


def print_plan(workspace: Path, params: Params, as_json: bool) -> None:
    """Prints the plan; a process of its own loads the teacher and measures.

    Raises:
        InvalidInputError: the run itself would be refused.
    """
    finished = ",".join(finished_stages(workspace, params))
    with tempfile.TemporaryDirectory(prefix="slimtts-plan-") as folder:
        own = Path(folder) / "params.yaml"
        own.write_text(yaml.safe_dump(params.model_dump(mode="json")))
        command = [sys.executable, "-m", "slimtts.cli", "plan", "--workspace", str(workspace), "--params", str(own)]
        command += ["--finished", finished] + (["--json"] if as_json else [])
        sys.stdout.flush()
        done = subprocess.run(command, env=stage_environment(), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise InvalidInputError("plan", _last_line(done.stderr), "a run that can start", "mend it and plan again")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("slimtts: ") if lines else "no message"
