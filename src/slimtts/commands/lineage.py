"""`slimtts lineage`: where a registered version comes from."""

from __future__ import annotations

import argparse

from slimtts.commands.checkout import add_registry_options, become, command_of

MODULE = ("tasks.versions", "lineage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which version."""
    parser.add_argument("version", help="number in the registry")
    parser.add_argument("--json", action="store_true", help="for programs")
    add_registry_options(parser)


def run(options: argparse.Namespace) -> None:
    """Becomes its module."""
    become(command_of(MODULE, options))
