"""Secrets of the environment do not get out, by whichever door."""

import base64
import logging
import os
import subprocess
import sys

import pytest

from slimtts.errors import InvalidInputError, MissingToolError, SlimttsError
from slimtts.redaction import RedactingFormatter, redact_everything, redacted, without_login

KEY = "correct-horse-battery"


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("SLIMTTS_API_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/secret+0123456789")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token-value")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "slimtts:of-the-flows")
    monkeypatch.setenv("SMTP_PASS", "letter-box")
    monkeypatch.setenv("DB_PASSPHRASE", "open sesame/1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:p%40ss%2Fword@mlflow:5050")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Ann Smith")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {KEY}!", "Bearer ***!"),
        ("aws/secret+0123456789 AKIAEXAMPLEEXAMPLE session-token-value hunter22", "*** *** *** ***"),
        ("postgresql://user:pa55@db:5432/mlflow is away", "postgresql://***@db:5432/mlflow is away"),
        ("http://h/x?X-Amz-Signature=abc123&y=1", "http://h/x?X-Amz-Signature=***&y=1"),
        ("http://127.0.0.1:8080/v1 is as it is", "http://127.0.0.1:8080/v1 is as it is"),
        ("login slimtts:of-the-flows, or of-the-flows alone", "login ***, or *** alone"),
        (base64.b64encode(b"slimtts:of-the-flows").decode(), "***"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic ***"),
        ("{'Authorization': 'Bearer abcdefghijkl'}", "{'Authorization': 'Bearer ***'}"),
        ("letter-box, open sesame/1, open%20sesame%2F1, open+sesame%2F1", "***, ***, ***, ***"),
        ("https://ann:p%40ss%2Fword@mlflow:5050/api", "https://***@mlflow:5050/api"),
        ("('ann', 'p@ss/word') and p%40ss%2Fword", "('ann', '***') and ***"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("s3 at http://key:secret@127.0.0.1:9000?a=1", "s3 at http://***@127.0.0.1:9000?a=1"),
        ("https://hub/x?token=abc&y=1&api_key=def", "https://hub/x?token=***&y=1&api_key=***"),
        (
            "models:/slimtts-nano@production and owner/name@0123456789",
            "models:/slimtts-nano@production and owner/name@0123456789",
        ),
        ("by Ann Smith", "by Ann Smith"),
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


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("http://u:pw12345@h", KEY, "hunter22", "letter-box"),
        MissingToolError(KEY, "of-the-flows", "hunter22"),
        SlimttsError(f"s3: {KEY} at https://u:v@h"),
    ],
)
def test_errors_tell_none(error):
    shown = str(error)
    assert "***" in shown
    for secret in (KEY, "hunter22", "letter-box", "of-the-flows", "pw12345", "u:v"):
        assert secret not in shown


def test_an_address_without_its_login_is_the_same_address():
    assert without_login("http://a:b@h:1/p?q=1") == "http://h:1/p?q=1"
    assert without_login("postgresql://a:b@h/d") == "postgresql://h/d"
    for plain in ("sqlite:////runs/mlflow.db", "owner/name@0123", "models:/m@production", ""):
        assert without_login(plain) == plain


def test_every_handler_gets_records_without_secrets(caplog):
    redact_everything()
    redact_everything()
    try:
        raise ValueError(f"key {KEY}")
    except ValueError:
        logging.getLogger("anything").exception("failed at %s with %d", "http://u:pw12345@h", 3)
    (record,) = caplog.records
    assert record.getMessage() == "failed at http://***@h with 3"
    assert "ValueError: key ***" in caplog.text
    assert KEY not in caplog.text and "pw12345" not in caplog.text


def test_an_uncaught_traceback_tells_none():
    code = "import tasks, os\nraise RuntimeError(os.environ['SMTP_PASS'] + ' at http://u:pw12345@h')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: *** at http://***@h" in done.stderr
    assert "letter-box" not in done.stderr and "pw12345" not in done.stderr


def test_a_variable_that_goes_away_meanwhile_is_no_error(monkeypatch):
    """Libraries set and remove variables in threads of their own."""
    monkeypatch.setenv("SLIMTTS_SHORT_LIVED", "value")

    class Vanishing(dict):
        def get(self, name, default=None):
            return default if name == "SLIMTTS_SHORT_LIVED" else super().get(name, default)

        def __getitem__(self, name):
            if name == "SLIMTTS_SHORT_LIVED":
                raise KeyError(name)
            return super().__getitem__(name)

    monkeypatch.setattr("slimtts.redaction.os.environ", Vanishing(os.environ))
    assert redacted(f"Bearer {KEY}!") == "Bearer ***!"
