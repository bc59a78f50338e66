"""Commands that need what lies beside the package, flows and registry: they become modules of the checkout."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from slimtts.errors import InvalidInputError

CHECKOUT = Path(__file__).resolve().parents[3]


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and where the runs are."""
    parser.add_argument("--model", default="", help="name in the registry (default: as in params.yaml)")
    parser.add_argument("--runs", type=Path, help="where runs live (default: runs/ of the checkout)")


def command_of(module: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Module and arguments for `become`; paths are made full, because the module runs in the checkout."""
    arguments = list(module)
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
