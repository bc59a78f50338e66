"""Secrets of the environment do not get out."""

import logging

import pytest

from slimtts.redaction import RedactingFormatter, redacted

KEY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("SLIMTTS_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/secret+0123456789")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token-value")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {KEY}!", "Bearer ***!"),
        ("aws/secret+0123456789 AKIAEXAMPLEEXAMPLE session-token-value hunter22", "*** *** *** ***"),
        ("postgresql://user:pa55@db:5432/mlflow is away", "postgresql://***@db:5432/mlflow is away"),
        ("http://h/x?X-Amz-Signature=abc123&y=1", "http://h/x?X-Amz-Signature=***&y=1"),
        ("http://127.0.0.1:8080/v1 is as it is", "http://127.0.0.1:8080/v1 is as it is"),
    ],
)
def test_what_is_masked(text, shown):
    assert redacted(text) == shown


def formatted(message, *values, error=None):
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, message, values, exc_info)
    return RedactingFormatter("%(levelname)s %(message)s").format(record)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/x\n2026-01-01 00:00:00,000 INFO forged", "/x\\n2026-01-01 00:00:00,000 INFO forged"),
        ("/x\r\x1b[2J", "/x\\r\\x1b[2J"),
        ("/x\u2028\u202e\x9b\ud83d", "/x\\u2028\\u202e\\x9b\\ud83d"),
    ],
)
def test_what_a_client_wrote_begins_no_line_and_steers_no_terminal(path, shown):
    line = formatted("%s cut: the client left", path)
    assert line == f"ERROR {shown} cut: the client left"
    assert line.isprintable()


def test_a_traceback_cannot_forge_a_line_either():
    try:
        raise ValueError("bad\n2026-01-01 INFO forged\x1b[2J")
    except ValueError as error:
        first, *further = formatted("failed\n", error=error).split("\n")
    assert first == "ERROR failed"
    assert further[0] == "  Traceback (most recent call last):"
    assert further[-1] == "  2026-01-01 INFO forged\\x1b[2J"
    assert all(line.startswith("  ") and line.isprintable() for line in further)


def test_tracebacks_are_masked_too():
    try:
        raise ValueError(f"key {KEY}")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed with %s", (KEY,), (type(error), error, None))
    line = RedactingFormatter("%(message)s").format(record)
    assert "failed with ***" in line
    assert "ValueError: key ***" in line
    assert KEY not in line
