"""What strangers wrote, made safe to show: names, ids and paths can neither start a line nor steer a terminal."""

from __future__ import annotations

import re

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # by libraries, in what they log
LONGEST = 2_000  # characters of one part of a message: longer ones hide the rest


def printable(text: object, longest: int | None = LONGEST) -> str:
    """One line that a terminal shows as it is: escapes as `repr` writes them, the middle left out beyond `longest`.

    Lines become one with a space between them, so that a message laid out in lines still reads well.
    """
    line = " ".join(str(text).splitlines())
    if longest is not None and len(line) > longest:
        line = f"{line[: longest // 2]} ... {line[len(line) - longest // 2 :]}"
    return line if line.isprintable() else "".join(map(_shown, line))


def printable_lines(text: str) -> str:
    """Our own lines, with what a terminal would act on escaped; a name in them is to be `printable` already."""
    return "\n".join(map(escaped, text.split("\n")))


def printable_record(text: str) -> str:
    """What a library logs: without colours, and with its further lines moved in, so that none is forged."""
    return "\n  ".join(map(escaped, COLOUR.sub("", text).split("\n")))


def escaped(text: object) -> str:
    """As `printable`, of any length and with the line ends themselves escaped: for logs, where a line is a record."""
    return "".join(map(_shown, str(text)))


def _shown(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
