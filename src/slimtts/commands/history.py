"""`slimtts history`: what went to production, when, why."""

from __future__ import annotations

import argparse

from slimtts.commands.checkout import add_registry_options, become, command_of

MODULE = ("tasks.versions", "history")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For people or programs."""
    parser.add_argument("--json", action="store_true", help="for programs")
    add_registry_options(parser)


def run(options: argparse.Namespace) -> None:
    """Becomes its module."""
    become(command_of(MODULE, options))
