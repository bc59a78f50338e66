"""Large files to S3 and back: in parts, each part checked, and a transfer that was cut goes on where it stopped.

What has arrived is found again from the server (unfinished uploads and their parts) or from the partial file beside
the wanted one; there is no state of our own to lose. An upload that nobody continues is removed by the bucket's
lifecycle rule, see `tasks.bucket`.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slimtts.errors import InvalidInputError, SlimttsError

if TYPE_CHECKING:
    from botocore.client import BaseClient

PART_BYTES = 32 * 2**20
MIN_PART_BYTES = 5 * 2**20  # S3's limits
MAX_PARTS = 10_000
PARALLEL_PARTS = 4  # of PART_BYTES in memory
CHUNK_BYTES = 2**20
FRUITLESS_READS = 5  # broken answers in a row, beside the attempts that boto3 makes by itself
SHA256 = "sha256"  # key of the object's metadata


@dataclass(frozen=True)
class Transfer:
    """What is there now, and how much of it this call has moved."""

    size_bytes: int
    sha256: str
    moved_bytes: int


@dataclass(frozen=True)
class _File:
    """A file as it was when its digests were taken."""

    path: Path
    size_bytes: int
    part_bytes: int
    sha256: str
    md5_of_parts: tuple[bytes, ...]

    def read_part(self, number: int) -> bytes:
        """Parts count from 1."""
        start = (number - 1) * self.part_bytes
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(min(self.part_bytes, self.size_bytes - start))


def upload_file(client: BaseClient, path: Path, url: str, part_bytes: int = PART_BYTES) -> Transfer:
    """Copies `path` to `s3://bucket/key`; parts that an earlier call has sent are not sent again.

    Args:
        client: of `tasks.bucket.s3_client`.
        path: must not shrink or change meanwhile; what is appended after the call began is left out.
        url: one writer at a time.
        part_bytes: the same in every call, or finished parts do not fit.

    Raises:
        InvalidInputError: not an address of an object, or parts that S3 does not take.
        SlimttsError: the server refuses, stays away, or holds other bytes afterwards.
    """
    return _send(client, _digest(path, part_bytes), url)


def upload_by_content(client: BaseClient, path: Path, folder_url: str, part_bytes: int = PART_BYTES) -> Transfer:
    """As `upload_file`, to an object below `folder_url` that is named by the SHA-256 of the file."""
    file = _digest(path, part_bytes)
    return _send(client, file, f"{folder_url}/{file.sha256}")


def _send(client: BaseClient, file: _File, url: str) -> Transfer:
    where = object_at(url)
    with s3_errors(url):
        if _holds(client, where, file):
            return Transfer(file.size_bytes, file.sha256, 0)
        if file.size_bytes <= file.part_bytes:
            data = file.read_part(1)
            moved = len(data)
            client.put_object(**where, Body=data, ContentMD5=_base64(file.md5_of_parts[0]), Metadata=_metadata(file))
        else:
            moved = _upload_parts(client, where, file)
        if not _holds(client, where, file):
            client.delete_object(**where)
            raise SlimttsError(f"{url}: observed other bytes than were sent, and removed them; next: run again")
    return Transfer(file.size_bytes, file.sha256, moved)


def download_file(client: BaseClient, url: str, path: Path) -> Transfer:
    """Copies `s3://bucket/key` to `path` by ranges; bytes that an earlier call has fetched are not fetched again.

    `path` appears when it is complete and its SHA-256 is the one that `upload_file` has noted.

    Raises:
        SlimttsError: no such object, one without a SHA-256, the server stays away, or the bytes are others.
    """
    where = object_at(url)
    with s3_errors(url):
        head = client.head_object(**where)
        size, expected = int(head["ContentLength"]), head["Metadata"].get(SHA256)
        if expected is None:
            raise InvalidInputError(url, "an object without its SHA-256", "one that was mirrored", "upload it again")
        if path.is_file() and path.stat().st_size == size and _sha256(path) == expected:
            return Transfer(size, expected, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{expected[:16]}.part")
        moved = _fetch_rest(client, {**where, "IfMatch": head["ETag"]}, partial, size)
    observed = _sha256(partial)
    if observed != expected:
        partial.unlink()
        raise SlimttsError(f"{url}: observed SHA-256 {observed}; allowed: {expected}; next: run again")
    partial.replace(path)
    return Transfer(size, expected, moved)


def unfinished_uploads(client: BaseClient, url: str) -> list[dict[str, Any]]:
    """Uploads below `s3://bucket/prefix` that were begun and not completed, the newest first."""
    parts = urlsplit(url)
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=parts.netloc, Prefix=parts.path.lstrip("/"))
    found = [upload for page in pages for upload in page.get("Uploads", [])]
    return sorted(found, key=lambda upload: upload["Initiated"], reverse=True)


def abort_uploads(client: BaseClient, url: str) -> int:
    """Removes the unfinished uploads below `url`, for servers without lifecycle rules; returns how many."""
    uploads = unfinished_uploads(client, url)
    for upload in uploads:
        client.abort_multipart_upload(Bucket=urlsplit(url).netloc, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(uploads)


def _upload_parts(client: BaseClient, where: dict[str, str], file: _File) -> int:
    """Sends what is missing and completes the upload; returns the bytes that were sent."""
    from botocore.exceptions import ClientError

    upload_id, etags = _continued_upload(client, where, file)
    missing = [number for number in range(1, len(file.md5_of_parts) + 1) if number not in etags]

    def send(number: int) -> int:
        data = file.read_part(number)
        md5 = _base64(file.md5_of_parts[number - 1])  # the server refuses a part that arrives otherwise
        answer = client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=data, ContentMD5=md5)
        etags[number] = answer["ETag"]
        return len(data)

    with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
        moved = sum(pool.map(send, missing))
    parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
    try:
        client.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload={"Parts": parts})
    except ClientError as error:
        # Asked twice because the first answer was lost; the caller looks at what is there.
        if error.response["Error"]["Code"] != "NoSuchUpload":
            raise
    return moved


def _continued_upload(client: BaseClient, where: dict[str, str], file: _File) -> tuple[str, dict[int, str]]:
    """The newest unfinished upload of this very content with its parts, or a new one. Those of others are removed.

    A part's ETag is its MD5; where a server encrypts with keys of its own it is not, and the parts are sent again.
    """
    expected = {
        number: (f'"{md5.hex()}"', min(file.part_bytes, file.size_bytes - (number - 1) * file.part_bytes))
        for number, md5 in enumerate(file.md5_of_parts, start=1)
    }
    for upload in unfinished_uploads(client, f"s3://{where['Bucket']}/{where['Key']}"):
        if upload["Key"] != where["Key"]:
            continue
        pages = client.get_paginator("list_parts").paginate(**where, UploadId=upload["UploadId"])
        arrived = {
            part["PartNumber"]: (part["ETag"], int(part["Size"])) for page in pages for part in page.get("Parts", [])
        }
        if arrived and all(expected.get(number) == part for number, part in arrived.items()):
            return upload["UploadId"], {number: etag for number, (etag, _) in arrived.items()}
        client.abort_multipart_upload(**where, UploadId=upload["UploadId"])
    return client.create_multipart_upload(**where, Metadata=_metadata(file))["UploadId"], {}


def _fetch_rest(client: BaseClient, wanted: dict[str, str], partial: Path, size: int) -> int:
    """Appends the missing bytes to `partial`; returns how many came."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

    moved = fruitless = 0
    with partial.open("ab") as stream:
        if stream.tell() > size:
            stream.truncate(0)
        while (start := stream.tell()) < size:
            end = min(start + PART_BYTES, size)
            try:
                body = client.get_object(**wanted, Range=f"bytes={start}-{end - 1}")["Body"]
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    stream.write(chunk)
            except (HTTPClientError, IncompleteReadError, ResponseStreamingError):
                fruitless = 0 if stream.tell() > start else fruitless + 1
                if fruitless == FRUITLESS_READS:
                    raise
            moved += stream.tell() - start
        stream.flush()
        os.fsync(stream.fileno())
    return moved


def _holds(client: BaseClient, where: dict[str, str], file: _File) -> bool:
    """Whether the object is there with this content."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(**where)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            return False
        raise
    return head["Metadata"].get(SHA256) == file.sha256 and int(head["ContentLength"]) == file.size_bytes


def _digest(path: Path, part_bytes: int) -> _File:
    """Reads the file once, as long as it is now."""
    if part_bytes < MIN_PART_BYTES:
        raise InvalidInputError("part_bytes", part_bytes, f"at least {MIN_PART_BYTES}", "take larger parts")
    size = path.stat().st_size
    part_bytes = max(part_bytes, -(-size // MAX_PARTS))
    whole, parts, left = hashlib.sha256(), [hashlib.md5(usedforsecurity=False)], size
    with path.open("rb") as stream:
        in_part = 0
        while left and (chunk := stream.read(min(CHUNK_BYTES, left, part_bytes - in_part))):
            whole.update(chunk)
            parts[-1].update(chunk)
            in_part, left = in_part + len(chunk), left - len(chunk)
            if in_part == part_bytes and left:
                parts.append(hashlib.md5(usedforsecurity=False))
                in_part = 0
    if left:
        raise InvalidInputError(str(path), "a file that shrinks while it is read", "a finished file", "run again")
    return _File(path, size, part_bytes, whole.hexdigest(), tuple(part.digest() for part in parts))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _metadata(file: _File) -> dict[str, str]:
    return {SHA256: file.sha256}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def object_at(url: str) -> dict[str, str]:
    """Bucket and key of `s3://bucket/key`, as boto3 wants them.

    Raises:
        InvalidInputError: not such an address.
    """
    parts = urlsplit(url)
    key = parts.path.lstrip("/")
    if parts.scheme != "s3" or not parts.netloc or not key or key.endswith("/"):
        raise InvalidInputError("address of an object", repr(url), "s3://bucket/key", "correct it")
    return {"Bucket": parts.netloc, "Key": key}


@contextmanager
def s3_errors(url: str) -> Iterator[None]:
    """Turns what boto3 raises inside the block into one line about `url`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError) as error:
        said = " ".join(str(error).split())
        raise SlimttsError(f"{url}: observed {said}; next: check AWS_* and the server, then run again") from None
