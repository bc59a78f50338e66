"""A run's folder: its own copy of dvc.yaml and params.yaml, a link to the sources, and a cache shared between runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.params import Params, parse_params
from slimtts.storage import atomic_path
from tasks.locks import exclusive_lock

CHECKOUT = Path(__file__).resolve().parents[1]
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DVC_IGNORE = "__pycache__/\n*.pyc\n"  # compiled files appear while a stage runs and would make it look changed


@contextmanager
def claimed_workspace(
    name: str, profile: str, overrides: Sequence[str], runs_root: Path, checkout: Path = CHECKOUT
) -> Iterator[Path]:
    """The prepared workspace, which no other flow can change or run while the block holds it.

    Raises:
        InvalidInputError: as `prepare_workspace`, or another flow runs there.
    """
    _check_name(name)
    with exclusive_lock(runs_root / name / ".flow.lock"):
        yield prepare_workspace(name, profile, overrides, runs_root, checkout)


def prepare_workspace(
    name: str, profile: str, overrides: Sequence[str], runs_root: Path, checkout: Path = CHECKOUT
) -> Path:
    """Makes or refreshes `runs_root/name`; files are written only when their content changes.

    Raises:
        InvalidInputError: bad name, unknown profile, malformed override or bad parameter.
    """
    _check_name(name)
    params = compose_params(profile, overrides, checkout)
    workspace = runs_root.resolve() / name
    workspace.mkdir(parents=True, exist_ok=True)
    _write_if_changed(workspace / "dvc.yaml", (checkout / "dvc.yaml").read_text())
    _write_if_changed(workspace / "params.yaml", yaml.safe_dump(params.model_dump(), sort_keys=False))
    _link(workspace / "src", checkout / "src")
    if not (workspace / ".dvc").is_dir():
        _dvc_init(workspace)
    _write_if_changed(workspace / ".dvcignore", DVC_IGNORE)
    _write_if_changed(workspace / ".dvc" / "config", dvc_config(params))
    return workspace


def compose_params(profile: str, overrides: Sequence[str], checkout: Path = CHECKOUT) -> Params:
    """params.yaml of the checkout, then the profile, then overrides such as `distill_student.steps=150`.

    Raises:
        InvalidInputError: unknown profile, malformed override or bad parameter.
    """
    profiles = checkout / "flows" / "profiles"
    path = profiles / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in profiles.glob("*.yaml")))
        raise InvalidInputError("--profile", repr(profile), known, "choose one of these or add a file there")
    values: dict[str, Any] = yaml.safe_load((checkout / "params.yaml").read_text())
    for changes in (yaml.safe_load(path.read_text()) or {}, *map(_parse_override, overrides)):
        for section, knobs in changes.items():
            values[section] = {**values.get(section, {}), **knobs}
    return parse_params(values, f"params of profile {profile}")


def dvc_config(params: Params) -> str:
    """DVC's settings of one workspace. Keys of a remote never come here: DVC reads AWS_* from the environment."""
    lines = ["[core]", "no_scm = True", "analytics = False", "check_update = False"]
    if params.storage.dvc_remote:
        lines += ["remote = storage"]
    lines += ["[cache]", "dir = ../../.dvc-cache", 'type = "hardlink,copy"']
    if params.storage.dvc_remote:
        lines += ["['remote \"storage\"']", f"url = {params.storage.dvc_remote}"]
        if params.storage.s3_endpoint:
            lines += [f"endpointurl = {params.storage.s3_endpoint}"]
    return "\n".join(lines) + "\n"


def git_revision(checkout: Path = CHECKOUT) -> str:
    """Commit of the checkout, with `-dirty` for uncommitted changes; `unknown` outside git."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidInputError("--name", repr(name), "letters, digits, '.', '_' and '-'", "choose another name")


def _parse_override(text: str) -> Mapping[str, Mapping[str, Any]]:
    key, equals, value = text.partition("=")
    section, dot, knob = key.strip().partition(".")
    if not (equals and dot and section and knob):
        raise InvalidInputError("--set", repr(text), "section.key=value", "for example distill_student.steps=150")
    try:
        return {section: {knob: yaml.safe_load(value)}}
    except yaml.YAMLError:
        raise InvalidInputError("--set", repr(text), "a YAML value after '='", "quote the value") from None


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text)


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _dvc_init(workspace: Path) -> None:
    command = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        raise SlimttsError(f"dvc init in {workspace}: {done.stderr.strip().splitlines()[-1:]}")
