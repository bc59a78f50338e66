"""How a module of the checkout ends on the command line: expected errors in one line, no traceback, no secret."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.printable import printable
from slimtts.redaction import redacted

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
# Packages whose errors mean that a server is away or refuses, and where its address comes from.
SERVERS = {
    "mlflow": "MLFLOW_TRACKING_URI and its login", "sqlalchemy": "MLFLOW_TRACKING_URI and its login",
    "requests": "MLFLOW_TRACKING_URI and its login", "urllib3": "MLFLOW_TRACKING_URI and its login",
    "botocore": "AWS_* and the endpoint", "boto3": "AWS_* and the endpoint",
    "httpx": "PREFECT_API_URL and PREFECT_API_AUTH_STRING",
}  # fmt: skip


def exit_code(work: Callable[[], int]) -> int:
    """What `work` gives; 2 for what only a person can mend, 1 for another failure, 0 where the reader has enough."""
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:  # `slimtts lineage 1 | head`; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, InvalidInputError) else EXIT_FAILED
    except Exception as error:
        if not told_of_a_server(error):
            raise
        return EXIT_FAILED
    return code


def told_of_a_server(error: Exception) -> bool:
    """Prints one line where the error means that a server is away or refuses; False for any other error."""
    package = type(error).__module__.partition(".")[0]
    if package not in SERVERS:
        return False
    problem = redacted(printable(str(error) or type(error).__name__, 400))
    print(f"slimtts: {package}: observed {problem}; next: check {SERVERS[package]}", file=sys.stderr)
    return True
