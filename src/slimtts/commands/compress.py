"""`slimtts compress`: all stages, for any teacher, as the flow of the checkout."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from slimtts.commands.checkout import become
from slimtts.errors import InvalidInputError

# What published work heals large teachers with at half depth; the rates of params.yaml were measured on nano.
LARGE_TEACHERS: dict[str, str | float | None] = {
    "distill_student.optimizer": "adamw",
    "distill_student.learning_rate": 1e-4,
    "distill_student.control_learning_rate": 1e-5,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The teacher, what to heal with, and what to change."""
    parser.add_argument("--teacher", required=True, help='a folder, a hub id "owner/name", or "bundled"')
    parser.add_argument("--family", help="default: what the teacher's files show")
    parser.add_argument("--revision", default="", help="full commit of a hub id")
    parser.add_argument("--codec", default="", help="a folder, or owner/name@commit (default: the family's own)")
    parser.add_argument("--data", default="", help="recordings or codes to heal with (default: as in the profile)")
    parser.add_argument(
        "--keep-layers", type=int, metavar="N", help="at most (default: half; bundled: as in the profile)"
    )
    parser.add_argument("--name", help="folder below runs/; a second start continues there (default: the teacher's)")
    parser.add_argument("--profile", default="demo", help="file in flows/profiles: demo or full")
    parser.add_argument("--show", action="store_true", help="print the flow's command instead of running it")
    parser.add_argument("--dry-run", action="store_true", help="print plan, time, memory and disk; start nothing")
    parser.add_argument("--json", action="store_true", help="print the plan, or the result, for programs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")


def run(options: argparse.Namespace) -> None:
    """Becomes the flow."""
    compress(options)


def flow_command(options: argparse.Namespace) -> list[str]:
    """The flow's command for a teacher, decoded as its makers do; `--set` of the user comes last and wins.

    Paths are made full: a run has a folder of its own. A registry entry is one family's.

    Raises:
        InvalidInputError: no such teacher or data, or a family that nothing shows.
    """
    from slimtts.teachers.detection import COSYVOICE_WEIGHTS, FILES, detect_family, stated_layers
    from slimtts.teachers.loading import FAMILIES
    from slimtts.teachers.model_folder import full_path, read_origin
    from slimtts.teachers.sources import resolve_checkpoint

    source, family, codec, layers = full_path(options.teacher), options.family, full_path(options.codec), None
    if source == "bundled":
        family = family or "nano"
    else:
        folder = resolve_checkpoint(source, options.revision, "--teacher", FILES)
        family, origin, layers = family or detect_family(folder), read_origin(folder), stated_layers(folder)
        is_cosyvoice = Path(source).is_dir() and (folder / COSYVOICE_WEIGHTS).is_file()
        codec = codec or (origin.codec if origin else source if is_cosyvoice else "")
    if options.data and not Path(options.data).exists():
        raise InvalidInputError("--data", f"nothing at {options.data}", "a file or folder", "correct the path")
    half = max(1, layers // 2) if layers else None
    settings: dict[str, str | float | None] = {
        "teacher.family": family,
        "teacher.source": source,
        "teacher.revision": options.revision,
        "teacher.codec": codec,
        "subset_data.source": full_path(options.data),
        "prune_layers.keep_layers": half if options.keep_layers is None else options.keep_layers,
        "register_model.model_name": "" if family == "nano" else f"slimtts-{family}",
    }
    if family not in FAMILIES:
        raise InvalidInputError("--family", family, ", ".join(FAMILIES), "correct it or leave it out")
    settings |= {f"decoding.{knob}": value for knob, value in FAMILIES[family].decoding.items()}
    if family != "nano":
        settings |= LARGE_TEACHERS
    given = [f"{key}={_as_yaml(value)}" for key, value in settings.items() if value not in ("", None)]
    name = options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name).lstrip("._-") or family
    command = [sys.executable, "-m", "flows.compress_model", "--name", name, "--profile", options.profile]
    for setting in [*given, *options.overrides]:
        command += ["--set", setting]
    return command + ["--dry-run"] * options.dry_run + ["--json"] * options.json


def _as_yaml(value: str | float | None) -> str:
    """As `--set` reads it back: quoted where YAML would see more than a text."""
    import yaml

    if not isinstance(value, str):
        return str(yaml.safe_dump(value)).splitlines()[0]
    try:
        is_plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def compress(options: argparse.Namespace, execute: Callable[[str, list[str]], object] = os.execv) -> None:
    """Becomes the flow, which lies beside the package in a checkout."""
    command = flow_command(options)
    is_heard = any(setting.startswith("recogniser.model=") for setting in options.overrides)
    if "teacher.family=nano" not in command and not is_heard:
        hint = "name another with --set recogniser.model=small.en"
        print(f"slimtts: the bundled recogniser knows only the words of nano; {hint}", file=sys.stderr)
    if options.show:
        print(shlex.join(command))
        return
    become(command[2:], execute)
