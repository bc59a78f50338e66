"""Single objects of DVC's remote, taken only when their bytes are what they are called."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.bucket import Logger
from tasks.output_bytes import FOLDER, OBJECTS

if TYPE_CHECKING:
    from botocore.client import BaseClient

READ_ONLY = 0o444  # as DVC leaves the objects of its cache


def fetch_object(client: BaseClient, remote: str, md5: str, into: Path, logger: Logger) -> bool:
    """Brings the object of this hash from the remote to `into`; False where it is not, or holds other bytes.

    A remote that does not answer is told and counts as one that has nothing.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    place = urlsplit(remote)
    key = f"{place.path.strip('/')}/{OBJECTS}/{md5[:2]}/{md5[2:]}".lstrip("/")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetched.", dir=into.parent) as folder:
        temporary = Path(folder) / "object"
        try:
            client.download_file(place.netloc, key, str(temporary))
        except (ClientError, BotoCoreError) as error:
            logger.warning("%s/%s: %s", remote, md5, error)
            return False
        with temporary.open("rb") as stream:
            observed = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if observed != md5.removesuffix(FOLDER):
            logger.warning("%s/%s: other bytes, of hash %s", remote, md5, observed)
            return False
        temporary.chmod(READ_ONLY)
        temporary.replace(into)
    return True
