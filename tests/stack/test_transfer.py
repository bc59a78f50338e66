import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.storage import changed_file, file_hashes, read_hashes
from slimtts.workspace import Workspace
from tasks.checkpoint_mirror import fetch_checkpoints, mirror_checkpoints, newest_checkpoints, read_manifest
from tasks.transfer import (
    MIN_PART_BYTES,
    Transfer,
    abort_uploads,
    download_file,
    object_at,
    unfinished_uploads,
    upload_by_content,
    upload_file,
)

CHECKOUT = Path(__file__).parents[2]
PARTS = 8
SIZE = (PARTS - 1) * MIN_PART_BYTES + 4321
WITHIN_S = 60.0


@pytest.fixture
def url(stack, request):
    return f"s3://slimtts-dvc/{request.node.name}"


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "tensors.safetensors"
    path.write_bytes(os.urandom(SIZE))
    return path


def _kill_when(code, stack, reached):
    """Runs Python code as a client of the stack and kills it (SIGKILL) as soon as `reached()`."""
    environment = {**os.environ, **stack.environment, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=CHECKOUT)
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _arrived_parts(s3, url):
    uploads = unfinished_uploads(s3, url)
    return s3.list_parts(**object_at(url), UploadId=uploads[0]["UploadId"]).get("Parts", []) if uploads else []


def test_a_killed_upload_sends_only_what_is_missing(stack, s3, url, large, tmp_path):
    # A slow reader, so that the kill falls into the middle however fast the disk is.
    code = f"""
import time
from pathlib import Path
from tasks import transfer
from tasks.bucket import s3_client
read = transfer._File.read_part
transfer._File.read_part = lambda file, number: (time.sleep(0.2 * number), read(file, number))[1]
transfer.upload_file(s3_client(""), Path({str(large)!r}), {url!r}, {MIN_PART_BYTES})
"""
    _kill_when(code, stack, lambda: len(_arrived_parts(s3, url)) >= 3)
    arrived = sum(part["Size"] for part in _arrived_parts(s3, url))
    assert 3 * MIN_PART_BYTES <= arrived < SIZE
    done = upload_file(s3, large, url, MIN_PART_BYTES)
    assert done.moved_bytes == SIZE - arrived
    assert not unfinished_uploads(s3, url)
    assert upload_file(s3, large, url, MIN_PART_BYTES) == Transfer(SIZE, done.sha256, 0)
    assert download_file(s3, url, tmp_path / "back").sha256 == done.sha256
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_killed_download_fetches_only_what_is_missing(stack, s3, url, large, tmp_path):
    sent = upload_file(s3, large, url)
    target = tmp_path / "back"
    partial = tmp_path / f".back.{sent.sha256[:16]}.part"
    code = f"""
import time
from pathlib import Path
from botocore.response import StreamingBody
from tasks import transfer
from tasks.bucket import s3_client
chunks = StreamingBody.iter_chunks
StreamingBody.iter_chunks = lambda body, size: (time.sleep(0.02) or chunk for chunk in chunks(body, size))
transfer.download_file(s3_client(""), {url!r}, Path({str(target)!r}))
"""
    _kill_when(code, stack, lambda: partial.exists() and partial.stat().st_size > SIZE // 4)
    there = partial.stat().st_size
    assert there < SIZE
    assert not target.exists()
    assert download_file(s3, url, target).moved_bytes == SIZE - there
    assert target.read_bytes() == large.read_bytes()
    assert not partial.exists()


def test_parts_of_other_content_are_not_used(s3, url, large):
    other = s3.create_multipart_upload(**object_at(url))["UploadId"]
    s3.upload_part(**object_at(url), UploadId=other, PartNumber=1, Body=b"x" * MIN_PART_BYTES)
    assert upload_file(s3, large, url, MIN_PART_BYTES).moved_bytes == SIZE
    assert not unfinished_uploads(s3, url)


def test_unfinished_uploads_are_removed_on_request(s3, url):
    for name in ("a", "b"):
        s3.create_multipart_upload(**object_at(f"{url}/{name}"))
    assert abort_uploads(s3, f"{url}/") == 2
    assert not unfinished_uploads(s3, f"{url}/")


def test_damaged_bytes_never_get_the_final_name(s3, url, large, tmp_path):
    sent = upload_file(s3, large, url)
    target = tmp_path / "back"
    (tmp_path / f".back.{sent.sha256[:16]}.part").write_bytes(b"damaged")
    with pytest.raises(SlimttsError, match="observed SHA-256"):
        download_file(s3, url, target)
    assert not target.exists()
    assert download_file(s3, url, target).moved_bytes == SIZE


def test_a_file_that_grows_is_sent_as_it_was(s3, url, tmp_path, monkeypatch):
    path = tmp_path / "curves.jsonl"
    path.write_text("one\n")
    head = s3.head_object

    def grow(**where):
        with path.open("a") as stream:
            stream.write("two\n")
        return head(**where)

    monkeypatch.setattr(s3, "head_object", grow)
    upload_file(s3, path, url)
    assert s3.get_object(**object_at(url))["Body"].read() == b"one\n"


def test_small_and_empty_files_and_former_versions(s3, url, tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"first", b"second"):
        path.write_bytes(content)
        assert upload_file(s3, path, url).moved_bytes == len(content)
        assert download_file(s3, url, tmp_path / "back").moved_bytes == len(content)
        assert (tmp_path / "back").read_bytes() == content
    versions = s3.list_object_versions(Bucket="slimtts-dvc", Prefix=object_at(url)["Key"])["Versions"]
    kept = {s3.get_object(**object_at(url), VersionId=v["VersionId"])["Body"].read() for v in versions}
    assert kept == {b"", b"first", b"second"}


def test_refusals_are_one_line(s3, url, large, tmp_path):
    with pytest.raises(InvalidInputError, match=r"address of an object: observed 's3://bucket/'"):
        upload_file(s3, large, "s3://bucket/")
    with pytest.raises(InvalidInputError, match="part_bytes: observed 1024"):
        upload_file(s3, large, url, part_bytes=1024)
    with pytest.raises(SlimttsError, match="404"):
        download_file(s3, url, tmp_path / "none")
    s3.put_object(**object_at(url), Body=b"by someone else")
    with pytest.raises(InvalidInputError, match="without its SHA-256"):
        download_file(s3, url, tmp_path / "foreign")
    with pytest.raises(SlimttsError, match="NoSuchBucket"):
        upload_file(s3, large, "s3://no-such-bucket/key")


def _checkpoint(workspace, training, step, tensors):
    folder = workspace.checkpoints / training / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "tensors.safetensors").write_bytes(tensors)
    (folder / "state.json").write_text(f'{{"step": {step}}}')
    (folder / "DONE").touch()
    (folder.parent / "curves.jsonl").write_text("{}\n" * step)
    return folder


def _files(workspace):
    return {
        path.relative_to(workspace.root).as_posix(): path.read_bytes()
        for path in workspace.root.rglob("*")
        if path.is_file()
    }


def test_another_machine_gets_the_newest_complete_checkpoints(s3, url, tmp_path):
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    assert mirror_checkpoints(s3, here, url) == fetch_checkpoints(s3, there, url) == 0
    _checkpoint(here, "student/mark", 2, b"old")
    _checkpoint(here, "student/mark", 4, b"new")
    _checkpoint(here, "control/mark", 3, b"control")
    (_checkpoint(here, "student/mark", 6, b"being written") / "DONE").unlink()
    assert mirror_checkpoints(s3, here, url) > 0
    assert mirror_checkpoints(s3, here, url) == 0
    fetched = fetch_checkpoints(s3, there, url)
    wanted = {name: data for name, data in _files(here).items() if "00000002" not in name and "00000006" not in name}
    assert _files(there) == wanted
    assert fetched == sum(map(len, wanted.values()))
    assert fetch_checkpoints(s3, there, url) == 0


def test_a_checkpoint_that_is_not_what_was_written_is_not_copied_but_the_one_before(s3, url, tmp_path):
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    for step in (2, 4):
        folder = _checkpoint(here, "student/mark", step, bytes([step]) * 100)
        (folder / "DONE").unlink()
        (folder / "DONE").write_text(json.dumps(file_hashes(folder)))
    (folder / "tensors.safetensors").write_bytes(b"\x05" * 100)
    with pytest.raises(SlimttsError, match="step-00000004: observed other bytes than the training wrote"):
        mirror_checkpoints(s3, here, url)
    fetch_checkpoints(s3, there, url)
    (found,) = newest_checkpoints(there.checkpoints)
    assert found.name == "step-00000002" and changed_file(found, read_hashes(found / "DONE")) is None


def test_an_object_of_another_content_than_its_name_is_refused(s3, url, tmp_path):
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    _checkpoint(here, "student/mark", 2, b"right")
    mirror_checkpoints(s3, here, url)
    sha256 = read_manifest(s3, url).trainings["student/mark"].files["step-00000002/tensors.safetensors"]
    (tmp_path / "other").write_bytes(b"wrong")
    upload_file(s3, tmp_path / "other", f"{url}/objects/{sha256}")
    with pytest.raises(SlimttsError, match="an object of another content"):
        fetch_checkpoints(s3, there, url)
    assert not newest_checkpoints(there.checkpoints)


def test_older_checkpoints_leave_the_mirror_and_do_not_replace_newer_ones(s3, url, tmp_path):
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    _checkpoint(here, "student/mark", 2, b"old")
    mirror_checkpoints(s3, here, url)
    _checkpoint(here, "student/mark", 4, b"new")
    mirror_checkpoints(s3, here, url)
    listed = s3.list_objects_v2(Bucket="slimtts-dvc", Prefix=object_at(f"{url}/objects/x")["Key"][:-1])["Contents"]
    named = {sha for training in read_manifest(s3, url).trainings.values() for sha in training.files.values()}
    assert {entry["Key"].rsplit("/")[-1] for entry in listed} == named
    _checkpoint(there, "student/mark", 5, b"own")
    before = _files(there)
    assert fetch_checkpoints(s3, there, url) == 0
    assert _files(there) == before


def test_a_mirror_killed_before_its_manifest_leaves_the_former_one(s3, url, tmp_path):
    here = Workspace(tmp_path / "here")
    _checkpoint(here, "student/mark", 2, b"old")
    mirror_checkpoints(s3, here, url)
    former = read_manifest(s3, url)
    newer = _checkpoint(here, "student/mark", 4, b"new")
    upload_by_content(s3, newer / "tensors.safetensors", f"{url}/objects")
    assert read_manifest(s3, url) == former
    there = Workspace(tmp_path / "there")
    fetch_checkpoints(s3, there, url)
    assert (there.checkpoints / "student" / "mark" / "step-00000002" / "DONE").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "student/../../outside"])
def test_a_manifest_cannot_leave_the_workspace(s3, url, tmp_path, name):
    manifest = {"trainings": {name: {"newest": "step-00000001", "files": {}}}}
    s3.put_object(**object_at(f"{url}/manifest.json"), Body=json.dumps(manifest).encode())
    with pytest.raises(InvalidInputError, match="leaves the folder"):
        fetch_checkpoints(s3, Workspace(tmp_path), url)
