"""A run's folder: its own dvc.yaml and params.yaml, a link to the code it executes, and a cache shared between runs."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.params import Params, parse_params
from slimtts.storage import atomic_path
from slimtts.yaml_files import parse_yaml, read_yaml
from tasks.checkouts import CHECKOUT, COPY, run_checkout
from tasks.locks import exclusive_lock
from tasks.stage_runner import CACHE, DVC
from tasks.team_gate import refuse_softer, team_limits

logger = logging.getLogger(__name__)

PROFILES = Path("flows", "profiles")
SHARED_CACHE = f"../../{CACHE}"  # as seen from a workspace's .dvc
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # as Prefect's form takes it
STORE = ("mlflow.db", "mlartifacts", "promotions.jsonl")  # MLflow's and old histories; -wal and so on too
TAKEN_NAMES = ("teachers", "stack")  # other folders below the runs
RUN_FILES = {".flow.lock", "dvc.yaml", "params.yaml"}  # one of which every run has
LONGEST_OVERRIDE, LONGEST_SHOWN = 4000, 120
# Compiled files appear while a stage runs and would make it look changed; a copy of the code, also one that was cut
# off by a kill, has a dvc.yaml too.
DVC_IGNORE = f"__pycache__/\n*.pyc\n/{COPY}/\n/.{COPY}.*/\n"


@contextmanager
def claimed_workspace(
    name: str,
    profile: str,
    overrides: Sequence[str],
    runs_root: Path,
    checkout: Path = CHECKOUT,
    revision: str = "",
    on_wait: Callable[[], None] | None = None,
) -> Iterator[Path]:
    """The prepared workspace, which no other flow can change or run while the block holds it.

    With `on_wait` (called once) it waits for a flow that runs there, without it refuses.

    Raises:
        InvalidInputError: as `prepare_workspace`, or another flow runs there and `on_wait` is None.
    """
    check_place(runs_root, name)
    with exclusive_lock(runs_root / name / ".flow.lock", on_wait):
        yield prepare_workspace(name, profile, overrides, runs_root, checkout, revision)


def prepare_workspace(
    name: str,
    profile: str,
    overrides: Sequence[str],
    runs_root: Path,
    checkout: Path = CHECKOUT,
    revision: str = "",
) -> Path:
    """Makes or refreshes `runs_root/name`; files are written only when their content changes.

    `revision` pins the run's code: stages, dvc.yaml, params.yaml and profiles (see `run_checkout`).

    Raises:
        InvalidInputError: bad name, revision, profile, override or parameter.
    """
    check_place(runs_root, name)
    workspace = runs_root.resolve() / name
    checkout = run_checkout(workspace, revision, checkout)
    params = compose_params(profile, overrides, checkout)
    workspace.mkdir(parents=True, exist_ok=True)
    _set_aside_damaged_lock(workspace / "dvc.lock")
    _write_if_changed(workspace / "dvc.yaml", (checkout / "dvc.yaml").read_text())
    _write_if_changed(workspace / "params.yaml", yaml.safe_dump(params.model_dump(), sort_keys=False))
    connect_dvc(workspace, params)
    link_code(workspace, checkout / "src")
    return workspace


def connect_dvc(workspace: Path, params: Params, cache: str = SHARED_CACHE) -> None:
    """Connects DVC with cache and remote."""
    if not (workspace / ".dvc").is_dir():
        _dvc_init(workspace)
    _write_if_changed(workspace / ".dvcignore", DVC_IGNORE)
    _write_if_changed(workspace / ".dvc" / "config", dvc_config(params, cache))


def link_code(workspace: Path, code: Path) -> None:
    """Links the code that the workspace executes: last of all, so that nothing is written through the link."""
    link = workspace / "src"
    if link.is_symlink() and link.readlink() == code:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(code)


def compose_params(profile: str, overrides: Sequence[str], checkout: Path = CHECKOUT) -> Params:
    """params.yaml of the checkout, then the profile, then overrides such as `distill_student.steps=150`.

    Limits of the gate begin as the team has them, whatever the checkout of the run says.

    Raises:
        InvalidInputError: unknown profile, malformed override, bad parameter, or a limit softer than the team's.
    """
    known = profile_names(checkout)
    if profile not in known:
        raise InvalidInputError("--profile", repr(profile), ", ".join(known), "choose one of these or add a file there")
    path = checkout / PROFILES / f"{profile}.yaml"
    values = _sections(read_yaml(checkout / "params.yaml"), str(checkout / "params.yaml"))
    values["register_model"] = {**values.get("register_model", {}), **team_limits()}
    for changes in (_sections(read_yaml(path) or {}, str(path)), *map(_parse_override, overrides)):
        for section, knobs in changes.items():
            values[section] = {**values.get(section, {}), **knobs}
    params = parse_params(values, f"params of profile {profile}")
    refuse_softer(params, f"params of profile {profile}")
    return params


def profile_names(checkout: Path = CHECKOUT) -> list[str]:
    """The profiles that a run can name."""
    return sorted(path.stem for path in (checkout / PROFILES).glob("*.yaml"))


def dvc_config(params: Params, cache: str = SHARED_CACHE) -> str:
    """DVC's settings of one workspace. Keys of a remote never come here: DVC reads AWS_* from the environment."""
    lines = ["[core]", "no_scm = True", "analytics = False", "check_update = False"]
    if params.storage.dvc_remote:
        lines += ["remote = storage"]
    lines += ["[cache]", f"dir = {cache}", 'type = "hardlink,copy"']
    if params.storage.dvc_remote:
        lines += ["['remote \"storage\"']", f"url = {params.storage.dvc_remote}"]
        if params.storage.s3_endpoint:
            lines += [f"endpointurl = {params.storage.s3_endpoint}"]
        lines += ["verify = True"]  # what comes from the remote is read before it is taken for what it is called
    return "\n".join(lines) + "\n"


def check_name(name: str) -> None:
    """Raises InvalidInputError for a name that is no plain folder, or that something else below the runs has."""
    if not NAME_PATTERN.fullmatch(name) or len(name) > LONGEST_NAME:
        shown = repr(name if len(name) <= LONGEST_NAME else f"{name[:40]}...") + f", {len(name)} characters"
        allowed = f"letters, digits, '.', '_' and '-', first a letter or digit, at most {LONGEST_NAME}"
        raise InvalidInputError("--name", shown, allowed, "choose another name")
    if name.startswith(STORE) or name in TAKEN_NAMES:
        taken = ", ".join((*STORE, *TAKEN_NAMES))
        raise InvalidInputError("--name", repr(name), f"not what lies beside the runs: {taken}", "choose another name")


def check_place(runs_root: Path, name: str) -> None:
    """Raises InvalidInputError for a bad name, or one that something else than a run has below the runs."""
    check_name(name)
    place = runs_root / name
    if place.is_dir():
        names = {path.name for path in place.iterdir()}
        is_other = bool(names) and not names & RUN_FILES
    else:
        is_other = place.exists() or place.is_symlink()
    if is_other:
        raise InvalidInputError("--name", f"{place}, which is no run", "a run, or a new name", "choose another name")


def _sections(values: Any, what: str) -> dict[str, dict[str, Any]]:
    if not isinstance(values, dict) or not all(isinstance(knobs, dict) for knobs in values.values()):
        raise InvalidInputError(what, "no mapping of sections", "section: {knob: value}", "correct the file")
    return values


def _parse_override(text: str) -> Mapping[str, Mapping[str, Any]]:
    shown = repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")
    key, equals, value = text.partition("=")
    section, dot, knob = key.strip().partition(".")
    if not (equals and dot and section and knob):
        raise InvalidInputError("--set", shown, "section.key=value", "for example distill_student.steps=150")
    if len(text) > LONGEST_OVERRIDE:
        raise InvalidInputError(
            "--set", f"{shown}, {len(text)} characters", f"at most {LONGEST_OVERRIDE}", "put it into a profile"
        )
    try:
        parsed = parse_yaml(value, "--set")
    except InvalidInputError as error:
        raise InvalidInputError("--set", f"{shown}: {error.observed}", "a YAML value after '='", "quote it") from None
    if not key.isprintable() or (isinstance(parsed, str) and not parsed.isprintable()):
        raise InvalidInputError("--set", shown, "a value of printable characters", "remove the others")
    return {section: {knob: parsed}}


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text)


def _set_aside_damaged_lock(lock: Path) -> None:
    """DVC can do nothing with a damaged record; without one it runs the stages again, which go on from what is kept."""
    try:
        stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() and lock.stat().st_size else {}
        is_sound = isinstance(stages, dict)
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        is_sound = False
    if not is_sound:
        lock.replace(lock.with_name("dvc.lock.damaged"))
        logger.warning("%s is damaged and set aside: the stages run again, from what they have kept", lock)


def _dvc_init(workspace: Path) -> None:
    command = [*DVC, "init", "--no-scm", "--quiet"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        raise SlimttsError(f"dvc init in {workspace}: {done.stderr.strip().splitlines()[-1:]}")
