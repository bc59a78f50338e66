"""`slimtts restore`: the workspace of a registered version, made again."""

from __future__ import annotations

import argparse
from pathlib import Path

from slimtts.commands.checkout import add_registry_options, become, command_of

MODULE = ("tasks.versions", "restore")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which version, and where to."""
    parser.add_argument("version", help="number in the registry")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="your remote (storage.dvc_remote, storage.s3_endpoint), or a teacher of the hub to download",
    )
    add_registry_options(parser)


def run(options: argparse.Namespace) -> None:
    """Becomes its module."""
    become(command_of(MODULE, options))
