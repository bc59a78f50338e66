"""Keeps secrets out of logs, errors, answers and what is recorded: one function at every door."""

from __future__ import annotations

import base64
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from slimtts.printable import escaped

SECRET_NAMES = re.compile(
    r"KEY|SECRET|TOKEN|PASS|PWD|CREDENTIAL|AUTH(?!OR)|COOKIE|DSN|CONNECTION_(URL|STRING)", re.IGNORECASE
)
# Up to the last @ before the path: a password may hold one.
LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s\"'<>?#]+@")
SIGNED_QUERY = re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+", re.IGNORECASE)
SECRET_QUERY = re.compile(
    r"([?&;](?:access_|api_|auth_|secret_)?(?:key|token|password|passwd|pwd|secret)=)[^&;\s\"']+", re.IGNORECASE
)
AUTHORIZATION = re.compile(r"\b(Basic|Bearer)( +)[A-Za-z0-9+/._~-]{8,}=*")
SHORTEST = 6  # characters of a secret: shorter values are words that occur anyway
MASK = "***"


def redacted(text: str) -> str:
    """The text without values of environment variables named as secrets, logins and keys in URLs, and signatures."""
    for secret in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = SIGNED_QUERY.sub(rf"\1{MASK}", LOGIN_IN_URL.sub(f"{MASK}@", text))
    return AUTHORIZATION.sub(rf"\1\2{MASK}", SECRET_QUERY.sub(rf"\1{MASK}", text))


def without_login(address: str) -> str:
    """An address as others may see it: without user and password."""
    return LOGIN_IN_URL.sub("", address)


def _secrets() -> Iterator[str]:
    """Every secret of the environment in the forms in which it travels."""
    for name in list(os.environ):
        value = os.environ.get(name, "")  # another thread may take it away meanwhile
        words = list(_login_of(value))
        if SECRET_NAMES.search(name) and "://" not in value and not (value[:1] == "/" and Path(value).exists()):
            words += [value, *value.split(":", 1)[1:]]  # of user:password the password too
            words.append(base64.b64encode(value.encode()).decode())
        for word in words:
            yield from (form for form in (word, quote(word, safe=""), quote_plus(word)) if len(form) >= SHORTEST)


def _login_of(address: str) -> Iterator[str]:
    """The password of an address, as it is written and as it is meant, and what a client makes of both."""
    try:
        login, at, _ = urlsplit(address).netloc.rpartition("@") if "://" in address else ("", "", "")
    except ValueError:
        return
    user, _, password = login.partition(":")
    if at and password:
        yield from (password, unquote(password))
        yield base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()


class RedactingFormatter(logging.Formatter):
    """Whatever is logged, tracebacks included, without secrets; what strangers wrote can begin no line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, redacted."""
        record.exc_text = None  # another formatter may have left its own there
        return redacted(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        return escaped(super().formatMessage(record).rstrip())

    def formatException(self, ei: Any) -> str:
        """The traceback, each line moved in."""
        return _moved_in(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """The stack, each line moved in."""
        return _moved_in(super().formatStack(stack_info))


def _moved_in(text: str) -> str:
    return "\n".join(f"  {escaped(line)}" for line in text.split("\n"))


def redact_everything() -> None:
    """From here on no log record and no uncaught traceback of this process holds a secret; once is enough.

    Records are changed where they are made, so that every handler, one that sends them to a server too, gets them so.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*arguments: Any, **names: Any) -> logging.LogRecord:
        record = make(*arguments, **names)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # words that do not fit the message: logging tells of it itself
            return record
        if redacted(text) != text:
            record.msg, record.args = redacted(text), ()
        if record.exc_info and record.exc_info[0] is not None:
            # Formatters take a text that is there already.
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info))).rstrip("\n")
        return record

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
    sys.excepthook = show
