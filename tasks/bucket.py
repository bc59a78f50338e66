"""The S3 bucket behind DVC's remote: made when missing, with versions kept and stale uploads removed."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slimtts.errors import SlimttsError

if TYPE_CHECKING:
    from botocore.client import BaseClient

STALE_UPLOAD_DAYS = 7
PROBE = b"slimtts"
ATTEMPTS = 10  # pauses between them grow to 20 s, at random; all together about a minute
DEFAULT_REGION = "us-east-1"  # the only one that must not be named when a bucket is made
Logger = logging.Logger | logging.LoggerAdapter[Any]


def s3_client(endpoint: str, key_id: str = "", secret_key: str = "", region: str = "") -> BaseClient:
    """A client for `endpoint` ("" = AWS or AWS_ENDPOINT_URL); what is "" comes from the AWS_* environment variables.

    A server that is away or overloaded is asked again for about a minute.
    """
    import boto3
    from botocore.config import Config

    patient = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    # A session of its own: boto3's shared one keeps the keys that the environment held when it was first used.
    return boto3.Session().client(
        "s3", endpoint_url=endpoint or None, aws_access_key_id=key_id or None,
        aws_secret_access_key=secret_key or None, region_name=region or None,
        config=Config(retries=patient, connect_timeout=10, read_timeout=60),
    )  # fmt: skip


def ensure_bucket(client: BaseClient, url: str, logger: Logger) -> bool:
    """Makes the bucket of `s3://bucket/prefix` when it is missing; True when it did. An existing one stays as it is.

    Raises:
        SlimttsError: the bucket exists but these keys may not use it, or it cannot be made.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = urlsplit(url).netloc
    try:
        if _exists(client, bucket):
            return False
        region = os.environ.get("AWS_DEFAULT_REGION", DEFAULT_REGION)
        where = {} if region == DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        client.create_bucket(Bucket=bucket, **where)
        _configure(client, bucket, logger)
        if not _reads_back(client, bucket):
            logger.warning("bucket %s does not return what was written; versions are switched off", bucket)
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
            if not _reads_back(client, bucket):
                raise SlimttsError(f"s3 bucket {bucket}: observed other bytes than written; next: mend the server")
    except (ClientError, BotoCoreError) as error:
        raise SlimttsError(f"s3 bucket {bucket}: {error}; next: check AWS_* and storage.s3_endpoint") from None
    logger.info("made bucket %s", bucket)
    return True


def _exists(client: BaseClient, bucket: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            return False
        raise
    return True


def _configure(client: BaseClient, bucket: str, logger: Logger) -> None:
    """Versioning and the lifecycle rule. The bucket holds outputs without them too, so a refusal is only told."""
    from botocore.exceptions import ClientError

    rule = {
        "ID": "abort-stale-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": STALE_UPLOAD_DAYS},
    }
    for what, call, settings in (
        ("versioning", client.put_bucket_versioning, {"VersioningConfiguration": {"Status": "Enabled"}}),
        ("lifecycle", client.put_bucket_lifecycle_configuration, {"LifecycleConfiguration": {"Rules": [rule]}}),
    ):
        try:
            call(Bucket=bucket, **settings)
        except ClientError as error:
            # Servers that lack it answer in many ways: NotImplemented, but also MalformedXML (OpenStack Swift 2.38).
            logger.warning("bucket %s works without %s: %s", bucket, what, error)


def _reads_back(client: BaseClient, bucket: str) -> bool:
    """Whether a written object can be read. Swift with versions on and its filters in the wrong order returns nothing,
    without an error, and an upload to it would be lost (seen with Swift 2.38)."""
    probe = {"Bucket": bucket, "Key": ".slimtts-probe"}
    client.put_object(**probe, Body=PROBE)
    try:
        return client.get_object(**probe)["Body"].read() == PROBE
    finally:
        client.delete_object(**probe)
