"""The command line: which command was meant, and every expected error in one line. Its commands: slimtts.commands."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from slimtts.commands.catalogue import COMMANDS, build_parser
from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.redaction import redact_everything

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def disk_is_full(error: Exception) -> bool:
    """True for ENOSPC; safetensors writes in Rust and gives the code of the system only as text."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or f"(os error {errno.ENOSPC})" in str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; every expected error is one line on stderr and exit code 2."""
    redact_everything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    meant = next((word for word in words if not word.startswith("-")), "")
    options = build_parser(meant).parse_args(words)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours tell more than "Loading weights"
    try:
        COMMANDS[options.command].load().run(options)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_BAD_INPUT)
    except BrokenPipeError:  # `slimtts history | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if not disk_is_full(error):
            raise
        problem = InvalidInputError(
            str(getattr(error, "filename", None) or options.command),
            "no space left on the disk",
            "room for one checkpoint",
            "free space and run the same command again; what was finished is kept",
        )
        print(f"slimtts: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("slimtts: interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
