"""`slimtts completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=SHELLS, help='for bash: eval "$(slimtts completion bash)"')


def run(options: argparse.Namespace) -> None:
    """Prints the script."""
    import shtab

    from slimtts.commands.catalogue import build_parser

    print(shtab.complete(build_parser(), shell=options.shell))
