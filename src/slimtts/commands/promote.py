"""`slimtts promote`: a registered version into production, if the gate lets it."""

from __future__ import annotations

import argparse

from slimtts.commands.checkout import add_registry_options, become, command_of

MODULE = ("flows.promote_model",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which version, and why."""
    parser.add_argument("version", help="number in the registry")
    parser.add_argument("--reason", default="", help="kept in the history")
    parser.add_argument(
        "--accept-new-basis",
        default="",
        metavar="WHY",
        help="why another test set, recogniser or teacher than production's is right",
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    add_registry_options(parser)


def run(options: argparse.Namespace) -> None:
    """Becomes its module."""
    become(command_of(MODULE, options))
