"""Names of strangers can neither start a line nor steer a terminal, and stay readable."""

import pytest

from slimtts.errors import InvalidInputError, MissingToolError, SlimttsError
from slimtts.printable import LONGEST, escaped, printable, printable_lines
from slimtts.process_guard import WorkspaceBusyError

SHOWN = {
    "words and accents": ("caf\u00e9 \u4f60\u597d 'x' \\n", "caf\u00e9 \u4f60\u597d 'x' \\n"),
    "colour of a terminal": ("\x1b[31mred", "\\x1b[31mred"),
    "title of a terminal": ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
    "eight-bit control": ("\x9b2J", "\\x9b2J"),
    "NUL and DEL": ("a\0b\x7f", "a\\x00b\\x7f"),
    "backspaces": ("good\b\b\b\bevil", "good\\x08\\x08\\x08\\x08evil"),
    "right to left": ("\u202egnp.exe", "\\u202egnp.exe"),
    "invisible": ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
    "tags": ("\U000e0041", "\\U000e0041"),
    "half a pair": ("\ud83d", "\\ud83d"),
    "private use": ("\ue000", "\\ue000"),
}
ENDS = ["\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("case", SHOWN)
def test_what_a_terminal_would_act_on_is_escaped_and_the_rest_is_as_it_was(case):
    given, shown = SHOWN[case]
    assert printable(given) == escaped(given) == printable_lines(given) == shown
    assert shown.isprintable()
    shown.encode()  # half a pair could not be written


@pytest.mark.parametrize("end", ENDS)
def test_a_line_end_starts_no_line(end):
    assert printable(f"a{end}slimtts: all is well") == "a slimtts: all is well"
    assert escaped(f"a{end}b") == f"a{repr(end)[1:-1]}b"


def test_our_own_lines_stay_lines():
    assert printable_lines("one\ntwo\x1b[2J\nthree\r\u2028") == "one\ntwo\\x1b[2J\nthree\\r\\u2028"


def test_a_long_part_loses_its_middle():
    shown = printable("a" * 10_000 + "end")
    assert len(shown) == LONGEST + len(" ... ")
    assert shown.startswith("aaa") and shown.endswith("end")
    assert printable("a" * 10_000, None) == "a" * 10_000
    line = str(InvalidInputError("w" * 10**6, "o" * 10**6, "a" * 10**6, "n" * 10**6))
    assert len(line) < 5 * LONGEST
    assert "; allowed: a" in line and "; next: n" in line


@pytest.mark.parametrize(
    "error",
    [InvalidInputError("u\x1b[2J", "o\n", "\u202ea", "n\0"), MissingToolError("t\x1b", "w\u2028", "n\x07"),
     SlimttsError("plain \x1b[31m\nslimtts: fine"), WorkspaceBusyError("run\r\x1b")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_every_error_of_ours_is_one_printable_line(error):
    assert str(error).isprintable()
