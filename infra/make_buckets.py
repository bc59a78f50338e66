"""Makes the buckets that a stack needs, with versions and a lifecycle: `python -m infra.make_buckets s3://NAME ...`."""

from __future__ import annotations

import logging
import sys

from slimtts.errors import SlimttsError
from tasks.bucket import ensure_bucket, s3_client


def main() -> int:
    """Exit code: 0 done, 1 the server refuses."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    client = s3_client("")
    try:
        for url in sys.argv[1:]:
            ensure_bucket(client, url, logging.getLogger("infra.buckets"))
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
