"""Keeps secrets of the environment out of logs and answers."""

from __future__ import annotations

import logging
import os
import re

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
    """Whatever is logged, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, redacted."""
        return redacted(super().format(record))
