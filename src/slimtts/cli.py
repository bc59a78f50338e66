"""The command line: which command was meant, and every expected error in one line. Its commands: slimtts.commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial

from slimtts.commands.catalogue import COMMANDS, build_parser
from slimtts.console import exit_code_of
from slimtts.errors import SlimttsError, refusal_of_system
from slimtts.proxies import bypass_loopback
from slimtts.redaction import redact_everything

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; every expected error is one line on stderr and exit code 2."""
    return exit_code_of(partial(_run, arguments))


def _run(arguments: Sequence[str] | None) -> int:
    redact_everything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    meant = next((word for word in words if not word.startswith("-")), "")
    options = build_parser(meant).parse_args(words)
    bypass_loopback(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours tell more than "Loading weights"
    try:
        COMMANDS[options.command].load().run(options)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_BAD_INPUT)
    except Exception as error:
        problem = refusal_of_system(error, options.command)
        if problem is None:
            raise
        print(f"slimtts: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("slimtts: interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
