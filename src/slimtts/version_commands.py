"""Commands about registered versions. The package knows no registry: modules of the checkout around it run them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError

MODULES = {
    "promote": ["flows.promote_model"],
    "rollback": ["flows.roll_back_model"],
    "history": ["tasks.versions", "history"],
    "lineage": ["tasks.versions", "lineage"],
    "restore": ["tasks.versions", "restore"],
}
CHECKOUT = Path(__file__).resolve().parents[2]


def add_version_commands(commands: Any) -> None:
    """Adds promote, rollback, history, lineage and restore to the subparsers of `slimtts`."""
    promote = commands.add_parser("promote", help="judge a registered version and put it into production")
    rollback = commands.add_parser("rollback", help="bring the former version back into production")
    history = commands.add_parser("history", help="who moved production when, why, from which version to which")
    lineage = commands.add_parser("lineage", help="where a registered version comes from")
    restore = commands.add_parser("restore", help="make the workspace of a registered version again")
    for command in (promote, lineage, restore):
        command.add_argument("version", help="number in the registry")
    promote.add_argument("--reason", default="", help="kept in the history")
    promote.add_argument(
        "--accept-new-basis", default="", metavar="WHY",
        help="why another test set, recogniser or teacher than production's is right",
    )  # fmt: skip
    promote.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    rollback.add_argument("--to", default="", metavar="VERSION", help="default: the one that was replaced")
    rollback.add_argument("--reason", required=True, help="kept in the history")
    for command in (history, lineage):
        command.add_argument("--json", action="store_true", help="for programs")
    restore.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="folder to make")
    for command in (promote, rollback, history, lineage, restore):
        command.add_argument("--model", default="", help="name in the registry (default: as in params.yaml)")
        command.add_argument("--runs", type=Path, help="where runs live (default: runs/ of the checkout)")


def version_command(options: argparse.Namespace) -> list[str]:
    """Module and arguments for `become`; paths are made full, because the module runs in the checkout."""
    arguments = list(MODULES[options.command])
    for name, value in vars(options).items():
        if name in ("command", "version") or not value:
            continue
        option = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
            continue
        for one in value if isinstance(value, list) else [value]:
            arguments.append(f"{option}={one.resolve() if isinstance(one, Path) else one}")
    return arguments + (["--", options.version] if "version" in options else [])


def become(module: Sequence[str], execute: Callable[[str, list[str]], object] = os.execv) -> None:
    """Turns this process into `python -m MODULE ARGUMENTS...` in the checkout.

    Raises:
        InvalidInputError: the package was installed without its checkout.
    """
    if not (CHECKOUT / Path(*module[0].split("."))).with_suffix(".py").is_file():
        raise InvalidInputError(
            f"python -m {module[0]}", f"not in {CHECKOUT}", "a checkout of the project", "clone it and `make install`"
        )
    os.chdir(CHECKOUT)
    sys.stdout.flush()
    sys.stderr.flush()
    execute(sys.executable, [sys.executable, "-m", *module])
