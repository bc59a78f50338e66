import io
import logging

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

from slimtts.errors import SlimttsError
from tasks.bucket import PROBE, ensure_bucket, s3_client

logger = logging.getLogger("test")
URL = "s3://speech/runs"
RULE = {
    "ID": "abort-stale-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
}


@pytest.fixture
def s3(monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()


def _expect_creation(stub):
    stub.add_client_error("head_bucket", "404", expected_params={"Bucket": "speech"})
    stub.add_response("create_bucket", {}, {"Bucket": "speech"})


def _expect_probe(stub, returned):
    stub.add_response("put_object", {}, {"Bucket": "speech", "Key": ANY, "Body": PROBE})
    stub.add_response("get_object", {"Body": StreamingBody(io.BytesIO(returned), len(returned))})
    stub.add_response("delete_object", {})


def _expect_settings(stub):
    versioning = {"Bucket": "speech", "VersioningConfiguration": {"Status": "Enabled"}}
    stub.add_response("put_bucket_versioning", {}, versioning)
    stub.add_response(
        "put_bucket_lifecycle_configuration", {}, {"Bucket": "speech", "LifecycleConfiguration": {"Rules": [RULE]}}
    )


def test_existing_bucket_stays_as_it_is(s3):
    client, stub = s3
    stub.add_response("head_bucket", {}, {"Bucket": "speech"})
    assert not ensure_bucket(client, URL, logger)


def test_missing_bucket_is_made_with_versions_and_a_lifecycle(s3):
    client, stub = s3
    _expect_creation(stub)
    _expect_settings(stub)
    _expect_probe(stub, PROBE)
    assert ensure_bucket(client, URL, logger)


def test_server_that_loses_versioned_objects_gets_a_bucket_without_versions(s3, caplog):
    client, stub = s3
    _expect_creation(stub)
    _expect_settings(stub)
    _expect_probe(stub, b"")
    suspended = {"Bucket": "speech", "VersioningConfiguration": {"Status": "Suspended"}}
    stub.add_response("put_bucket_versioning", {}, suspended)
    _expect_probe(stub, PROBE)
    assert ensure_bucket(client, URL, logger)
    assert "versions are switched off" in caplog.text


def test_server_that_loses_everything_is_refused(s3):
    client, stub = s3
    _expect_creation(stub)
    _expect_settings(stub)
    _expect_probe(stub, b"")
    stub.add_response("put_bucket_versioning", {})
    _expect_probe(stub, b"")
    with pytest.raises(SlimttsError, match="observed other bytes than written"):
        ensure_bucket(client, URL, logger)


@pytest.mark.parametrize("answer", ["NotImplemented", "MalformedXML"])
def test_server_without_lifecycles_is_told_about(s3, caplog, answer):
    client, stub = s3
    _expect_creation(stub)
    stub.add_response("put_bucket_versioning", {})
    stub.add_client_error("put_bucket_lifecycle_configuration", answer)
    _expect_probe(stub, PROBE)
    assert ensure_bucket(client, URL, logger)
    assert "works without lifecycle" in caplog.text


def test_foreign_bucket_is_one_clear_error(s3):
    client, stub = s3
    stub.add_client_error("head_bucket", "403")
    with pytest.raises(SlimttsError, match=r"s3 bucket speech.*next: check AWS_"):
        ensure_bucket(client, URL, logger)


def test_client_takes_keys_from_its_arguments_or_the_environment_and_is_patient(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    ours = s3_client("http://127.0.0.1:2", "from-argument", "secret", "eu-north-1")
    theirs = s3_client("")
    assert (ours.meta.endpoint_url, ours.meta.region_name) == ("http://127.0.0.1:2", "eu-north-1")
    assert theirs.meta.endpoint_url == "http://127.0.0.1:1"
    keys = [client._request_signer._credentials.access_key for client in (ours, theirs)]
    assert keys == ["from-argument", "from-environment"]
    assert ours.meta.config.retries["mode"] == "standard"
    assert ours.meta.config.retries["total_max_attempts"] == 10
