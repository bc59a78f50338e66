"""Versions, names, gates and addresses of strangers: refused in one line, nothing followed and nothing softened."""

import json
from pathlib import Path

import pytest
import yaml

from tasks.output_bytes import Output

pytestmark = pytest.mark.hostile

DECLARED = {"subset_data": {"data": True, "progress/subset_data": False}, "score_layers": {"scores": True}}
GOOD = {"path": "data", "hash": "md5", "md5": "0" * 32 + ".dir", "size": 1, "nfiles": 1}
MD5 = "0123456789abcdef" * 2


def lock(stage="subset_data", **changes):
    return yaml.safe_dump({"schema": "2.0", "stages": {stage: {"cmd": "x", "outs": [{**GOOD, **changes}]}}})


LOCKS = {
    "output below src": lock(path="src/sitecustomize.py"),
    "output above": lock(path="../evil"),
    "absolute output": lock(path="/etc/cron.d/evil"),
    "output of another stage": lock(path="scores"),
    "output that is DVC's own": lock(path=".dvc/config"),
    "output that hides a module": lock(path="yaml.py"),
    "output with a line end": lock(path="data\nforged: yes"),
    "unknown stage": lock(stage="evil"),
    "hash that is a path": lock(md5="../../../../home/user/.ssh/id_rsa"),
    "hash of another length": lock(md5="0" * 31),
    "hash of another kind": lock(hash="sha256"),
    "hash in capitals": lock(md5="A" * 32),
    "files of its own": lock(files=[{"relpath": "../evil", "md5": MD5}]),
    "version of a cloud": lock(cloud={"evil": {"etag": "x", "version_id": "y"}}),
    "remote of its own": lock(remote="evil"),
    "push elsewhere": lock(push=False),
    "no YAML": "{",
    "another type": "- 1",
    "no stages": "schema: '2.0'",
    "stages of another type": "stages: [1, 2]",
    "outputs of another type": "stages: {subset_data: {outs: {a: b}}}",
    "Python's tag": "stages: !!python/object/apply:os.system ['touch ran']",
    "binary": "\x00\x01",
    "larger than any": "#" * (2 << 20),
}


@pytest.mark.parametrize("content", LOCKS.values(), ids=LOCKS)
def test_a_lock_that_names_something_else(refused, tmp_path, content):
    path = tmp_path / "dvc.lock"
    path.write_text(content)
    refused("tasks.output_bytes:locked_outputs", [path, DECLARED, "dvc.lock"])
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()


LISTS = {
    "above": [{"md5": MD5, "relpath": "../evil"}],
    "deep above": [{"md5": MD5, "relpath": "a/../../evil"}],
    "absolute": [{"md5": MD5, "relpath": "/etc/evil"}],
    "empty part": [{"md5": MD5, "relpath": "a//b"}],
    "here": [{"md5": MD5, "relpath": "."}],
    "nothing": [{"md5": MD5, "relpath": ""}],
    "backslash": [{"md5": MD5, "relpath": "..\\evil"}],
    "zero byte": [{"md5": MD5, "relpath": "a\x00b"}],
    "hash that is a path": [{"md5": "../../evil", "relpath": "a"}],
    "hash of a folder": [{"md5": f"{MD5}.dir", "relpath": "a"}],
    "no hash": [{"relpath": "a"}],
    "no list": 3,
    "list of texts": ["a"],
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_a_folders_list_that_leaves_it(refused, content):
    refused("tasks.output_bytes:listed_files", [json.dumps(content).encode(), Output("data", f"{MD5}.dir")])


def test_a_folders_list_that_is_deeper_than_any(refused):
    refused("tasks.output_bytes:listed_files", [b"[" * 200_000, Output("data", f"{MD5}.dir")])


SOFTER = (
    "max_wer_gap_upper_points=1e308", "max_wer_gap_upper_points=3.0000001", "max_no_end_rate=1", "min_speedup=1e-300",
    "max_similarity_drop=2", "max_mos_drop_upper=5", "min_utterances=1", "min_speedup=.nan", "min_speedup=-.inf",
    "max_mos_drop_upper=.inf", "max_wer_gap_upper_points=null", "min_utterances=true",
)  # fmt: skip


@pytest.mark.parametrize("override", SOFTER)
def test_an_override_that_softens_the_gate(refused, override):
    refused("tasks.workspace:compose_params", ["demo", [f"register_model.{override}"]])


@pytest.mark.parametrize("spelling", [" register_model.min_speedup = 0.1", "register_model.min_speedup=1.1"])
def test_an_override_that_softens_in_another_spelling(refused, spelling):
    refused("tasks.workspace:compose_params", ["full", ["register_model.min_speedup=5", spelling]])


ADDRESSES = (
    "http://key:secret@127.0.0.1:9", "https://secret@host", "http://host?X-Amz-Signature=abc", "http://host#x",
    "http://host\nurl = s3://evil", "http://host x", "ftp://host", "file:///etc", "//host", "host:9000", "http://",
    "http://\x1b[31mhost",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_endpoint_with_a_login_or_more_than_an_address(refused, address):
    line = refused("tasks.workspace:compose_params", ["demo", [f"storage.s3_endpoint={json.dumps(address)}"]])
    assert "secret" not in line


STORES = (
    "http://stranger.example/x", "https://mlflow:5050/x", "http://mlflow:5051/x", "http://mlflow:5050/x?to=evil",
    "mlflow-artifacts://stranger.example/1", "mlflow-artifacts://mlflow:5050@stranger.example/1", "s3://stranger/x",
    "file:///etc", "/etc", "../etc", "gs://stranger/x", "dbfs:/x", "ftp://user:secret@host/x", "hdfs://x",
    "mlflow-artifacts:/1/../../etc", "mlflow-artifacts:/1/%2e%2e/%2e%2e/etc", "mlflow-artifacts:/1/%252e%252e/etc",
)  # fmt: skip


@pytest.mark.parametrize("address", STORES)
def test_artifacts_in_somebody_elses_store(refused, address):
    line = refused("tasks.artifact_store:check_own", [address, "http://mlflow:5050", "m version 1"])
    assert "secret" not in line


@pytest.mark.parametrize(
    "override", ["register_model.min_speedup=9", "distill_student.teacher_cache=/etc", "x", "", "storage.x=1"]
)
def test_a_restore_takes_ones_own_places_and_no_other_settings(refused, override):
    refused("tasks.restoration:own_settings", [[override]])


FORGERIES = {
    "line end": "x\n2030-01-01 00:00:00Z  promoted ACCEPT  1 -> 9  by the team",
    "terminal": "\x1b[2J\x1b[31mowned\x07",
    "line separators": "a\x85b\u2028c\u2029d",
    "other direction": "\u202egpj.exe",
    "zero byte": "a\x00b",
}


@pytest.mark.parametrize("text", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_record_stays_one_line_of_the_history(attempt, text):
    made = attempt("tests.hostile.version_targets:print_history", [text])
    assert made.outcome == "accepted", made
    (line,) = made.message.splitlines()
    assert line.isprintable()
    assert line.startswith("2025-01-01 12:00:00Z  refused REGRESSION")


@pytest.mark.parametrize("text", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_lineage_stays_in_its_lines(attempt, text):
    made = attempt("tests.hostile.version_targets:print_lineage", [text])
    assert made.outcome == "accepted", made
    lines = made.message.splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == attempt("tests.hostile.version_targets:print_lineage", ["plain"]).message.count("\n")
