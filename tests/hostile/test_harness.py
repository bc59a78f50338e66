"""The harness itself sees each way in which an input can do harm."""

import pytest

pytestmark = pytest.mark.hostile


def test_a_crash_a_hang_and_a_traceback_are_seen(attempt):
    assert attempt("os:abort", []).outcome == "died"
    assert attempt("time:sleep", [30], time_bound_s=0.5).outcome == "hung"
    assert attempt("builtins:int", ["no number"]).outcome == "traceback"


def test_a_refusal_is_told_in_one_line(refused, tmp_path):
    assert "no such folder" in refused("cli", ["say", "the green tiger", "--model", str(tmp_path / "absent")])


def test_memory_is_counted(attempt):
    assert attempt("builtins:bytearray", [300 * 2**20]).memory_mib > 250
