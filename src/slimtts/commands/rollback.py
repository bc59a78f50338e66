"""`slimtts rollback`: the former version back into production."""

from __future__ import annotations

import argparse

from slimtts.commands.checkout import add_registry_options, become, command_of

MODULE = ("flows.roll_back_model",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """To which version, and why."""
    parser.add_argument("--to", default="", metavar="VERSION", help="default: the one before; none: nothing is served")
    parser.add_argument("--reason", required=True, help="kept in the history")
    add_registry_options(parser)


def run(options: argparse.Namespace) -> None:
    """Becomes its module."""
    become(command_of(MODULE, options))
