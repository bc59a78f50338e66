"""Keeps secrets of the environment out of logs and answers."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from slimtts.printable import escaped

SECRET_NAMES = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
SIGNED_QUERY = re.compile(r"(X-Amz-(?:Signature|Credential|Security-Token)=)[^&\s]+", re.IGNORECASE)
SHORTEST = 6  # characters of a secret: shorter values are words that occur anyway
MASK = "***"


def redacted(text: str) -> str:
    """The text without the values of environment variables named as secrets, logins in URLs, and signatures."""
    secrets = {value for name, value in os.environ.items() if SECRET_NAMES.search(name) and len(value) >= SHORTEST}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return SIGNED_QUERY.sub(rf"\1{MASK}", LOGIN_IN_URL.sub(f"{MASK}@", text))


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
