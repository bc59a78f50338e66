"""Text files of other people: regular, in UTF-8, read within bounds that do not hang on what they hold."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError

LONGEST_LINE = 16 << 20  # characters: an hour of codes
MAX_TEXT_BYTES = 64 << 20  # of a file that is read whole
MAX_BLANK_LINES = 10_000
# Packed bytes may become so many times more, and FREE_BYTES in any case; manifests become 3 to 20 times more.
MAX_EXPANSION, FREE_BYTES = 100, 64 << 20


def check_regular(path: Path, what: str, allowed: str, next_step: str) -> int:
    """The size of a regular file in bytes; a pipe would be waited for without end.

    Raises:
        InvalidInputError: nothing there, a folder, a pipe or device, or a name that the file system does not take.
    """
    try:
        if path.is_file():
            return path.stat().st_size
        observed = "a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
    except (OSError, ValueError) as error:
        observed = getattr(error, "strerror", None) or str(error)
    raise InvalidInputError(what, observed, allowed, next_step)


def read_text(path: Path, what: str, allowed: str, next_step: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """All of a UTF-8 file, without its byte order mark.

    Raises:
        InvalidInputError: as `check_regular`; too large, unreadable, or not UTF-8.
    """
    size = check_regular(path, what, allowed, next_step)
    if size > max_bytes:
        raise InvalidInputError(what, f"{size} bytes", f"at most {max_bytes}", next_step)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(what, error, f"{allowed}, readable and UTF-8", next_step) from None


def numbered_lines(path: Path, what: str, allowed: str, next_step: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank, packed by gzip where the name ends in .gz; cut at "\\n" alone.

    Raises:
        InvalidInputError: as `read_text`; a line, the blank lines, or what comes out of a packed file is too long.
    """
    size = check_regular(path, what, allowed, next_step)
    blank = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="\n")
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise InvalidInputError(
                        f"{what} line {number}", "no end of the line", f"{LONGEST_LINE} characters", next_step
                    )
                check_expansion(raw.tell(), size, what, next_step)
                if line.strip():
                    yield number, line.removesuffix("\n")
                    continue
                blank += 1
                if blank > MAX_BLANK_LINES:
                    raise InvalidInputError(what, f"{blank} blank lines", f"at most {MAX_BLANK_LINES}", next_step)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(what, error, f"{allowed}, readable and UTF-8", next_step) from None


def check_expansion(unpacked_bytes: int, packed_bytes: int, what: str, next_step: str) -> None:
    """Refuses a file that becomes far more than it is.

    Raises:
        InvalidInputError: more than MAX_EXPANSION times its size, and more than FREE_BYTES.
    """
    if unpacked_bytes > max(FREE_BYTES, MAX_EXPANSION * packed_bytes):
        raise InvalidInputError(
            what, f"more than {unpacked_bytes} bytes out of {packed_bytes}",
            f"{MAX_EXPANSION} times, or {FREE_BYTES} bytes", next_step,
        )  # fmt: skip


def parse_json(text: str) -> Any:
    """JSON in which no object has a key twice: of two values one would be lost without a word.

    Raises:
        ValueError: no JSON, nested too deeply, or a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' twice")
    return values
