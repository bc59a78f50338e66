"""New versions of teachers in a real bucket and a real registry start one run each."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from slimtts.errors import InvalidInputError, SlimttsError
from tasks.bucket import s3_client
from tasks.teacher_settings import teacher_overrides
from tasks.teacher_versions import ChangedMeanwhileError, fetch, newest_version
from tasks.tracking import mlflow_client, tracking_uri
from tasks.workspace import CHECKOUT

BUNDLED = CHECKOUT / "src" / "slimtts" / "nano" / "bundle" / "teacher"
SHARDS = ("model-1.safetensors", "model-2.safetensors")
DEPLOYMENT = "compress-model/watched"


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """The bundled teacher with weights of a few bytes in two files."""
    folder = tmp_path_factory.mktemp("teachers") / "nano"
    shutil.copytree(BUNDLED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for shard in SHARDS:
        (folder / shard).write_bytes(shard.encode())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}))
    return folder


@pytest.fixture
def bucket(stack_client, tmp_path):
    """Puts files below s3://teachers-…/incoming; yields the function and the source."""
    client = s3_client("")
    name = f"teachers-{os.getpid()}-{tmp_path.name.replace('_', '-')}"[:60].rstrip("-")
    client.create_bucket(Bucket=name)

    def put(folder, *names, below="nano"):
        for path in [folder / name for name in names] or [path for path in folder.rglob("*") if path.is_file()]:
            client.put_object(Bucket=name, Key=f"incoming/{below}/{path.relative_to(folder)}", Body=path.read_bytes())

    return put, f"s3://{name}/incoming"


@pytest.fixture
def watch(stack_client, tmp_path):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.watch_teachers import watch_teachers

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="idle", type="process"), overwrite=True)
    compress = flow.from_source(str(CHECKOUT), "flows/compress_model.py:compress_model")
    compress.deploy("watched", work_pool_name="idle", build=False, print_next_steps=False)

    def look(source, **more):
        given = {"quiet_minutes": 0, "deployment": DEPLOYMENT, "profile": "demo", "runs_root": tmp_path / "runs"}
        return watch_teachers(source, **given | more)

    return look


def started(run_id):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id)


@pytest.mark.stack
def test_a_complete_upload_starts_one_run_and_a_changed_one_another(bucket, watch, teacher, tmp_path):
    from prefect.variables import Variable

    put, source = bucket
    assert watch(source) == ""
    put(teacher, "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", SHARDS[0])
    assert watch(source) == "", "a part of the weights is missing"
    put(teacher)
    assert watch(source, quiet_minutes=5) == "", "it may still be going on"

    first = watch(source, overrides=["distill_student.steps=7"])
    run = started(first)
    name = run.parameters["name"]
    folder = tmp_path / "runs" / "teachers" / name
    assert name.startswith("nano-")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in teacher.iterdir()
    }
    assert f"teacher.source={folder}" in run.parameters["overrides"]
    assert run.parameters["overrides"][-1] == "distill_student.steps=7"
    assert run.parameters["revision"] == "HEAD"
    assert watch(source) == "", "it has had its run"
    for variable in remembered():
        Variable.unset(variable)
    assert watch(source) == first, "what was forgotten is not started twice"

    changed = tmp_path / "changed"
    shutil.copytree(teacher, changed)
    (changed / SHARDS[1]).write_bytes(b"more training")
    put(changed, SHARDS[1])
    second = watch(source)
    assert second not in ("", first)
    assert started(second).parameters["name"] != name


@pytest.mark.stack
def test_marker_says_when_an_upload_is_complete(bucket, teacher, tmp_path):
    put, source = bucket

    def version():
        return newest_version(source, "", tmp_path, marker="DONE", quiet_s=0)

    put(teacher)
    assert version() is None
    (tmp_path / "DONE").write_text("")
    put(tmp_path, "DONE")
    first = version()
    assert first is not None
    other = tmp_path / "other"
    other.mkdir()
    (other / SHARDS[0]).write_bytes(b"of the next version")
    put(other, SHARDS[0])
    with pytest.raises(ChangedMeanwhileError, match="changed while it was read; next: look again"):
        fetch(first, "", tmp_path / "runs")
    assert list((tmp_path / "runs" / "teachers").iterdir()) == []


@pytest.mark.stack
def test_the_newest_complete_folder_counts(bucket, teacher, tmp_path):
    put, source = bucket
    put(teacher, below="v1")
    put(teacher, "config.json", below="v2")
    assert newest_version(source, "", tmp_path, "", 0).label == "v1"
    put(teacher, below="v2")
    assert newest_version(source, "", tmp_path, "", 0).label == "v2"


@pytest.mark.stack
def test_an_alias_in_the_registry_starts_a_run_for_each_version(stack_client, watch, teacher, tmp_path):
    from tasks.tracking import mlflow_client

    client = mlflow_client(stack_client["MLFLOW_TRACKING_URI"])
    model = f"teacher-{os.getpid()}"
    source = f"models:/{model}@released"
    assert watch(source) == ""
    run_id = client.create_run(client.create_experiment(model)).info.run_id
    client.log_artifacts(run_id, str(teacher), "model/checkpoint")
    client.create_registered_model(model)
    for number in ("1", "2"):
        client.create_model_version(model, f"runs:/{run_id}/model", run_id=run_id)
        client.set_registered_model_alias(model, "released", number)
        run = started(watch(source))
        assert run.parameters["name"].startswith(f"{model}-")
        [origin] = [entry for entry in run.parameters["overrides"] if entry.startswith("teacher.source=")]
        assert (Path(origin.partition("=")[2]) / "config.json").is_file()
        assert watch(source) == ""


def test_names_that_leave_their_folder_are_refused(monkeypatch, tmp_path):
    from datetime import UTC, datetime

    class Listing:
        def get_paginator(self, _):
            return self

        def paginate(self, **_):
            row = {"ETag": "x", "Size": 1, "LastModified": datetime.now(UTC)}
            yield {"Contents": [{"Key": "nano/config.json", **row}, {"Key": "nano/../../evil", **row}]}

    monkeypatch.setattr("tasks.teacher_versions.s3_client", lambda endpoint: Listing())
    with pytest.raises(InvalidInputError, match=r"'\.\./\.\./evil'; allowed: names within the folder"):
        newest_version("s3://bucket/nano", "", tmp_path, "", 0)


def test_a_registered_teacher_comes_from_ones_own_store_only(runs_root, teacher, tmp_path):
    client = mlflow_client(tracking_uri(runs_root))
    outside = tmp_path / "private" / "checkpoint"
    shutil.copytree(teacher, outside)
    own = runs_root / "mlartifacts" / "linked"
    shutil.copytree(teacher, own)
    (own / "LICENSE").symlink_to("/etc/hostname")
    run_id = client.create_run(client.create_experiment("x", artifact_location=str(tmp_path / "private"))).info.run_id
    mine = client.create_run(client.create_experiment("y", (runs_root / "mlartifacts").as_uri())).info.run_id
    client.log_artifacts(mine, str(teacher), "model/checkpoint")
    client.create_registered_model("t")
    sources = [
        outside.as_uri(), str(outside), "http://127.0.0.1:9/x", "s3://stranger/teacher", f"runs:/{run_id}/checkpoint",
        own.as_uri(),
    ]  # fmt: skip
    for number, source in enumerate([*sources, f"runs:/{mine}/model"], start=1):
        client.create_model_version("t", source)
        client.set_registered_model_alias("t", "released", str(number))
        version = newest_version("models:/t@released", "", runs_root, "", 0)
        if number <= len(sources):
            with pytest.raises(InvalidInputError, match=r"teacher models:/t/\d.*observed") as refusal:
                fetch(version, "", runs_root)
            assert "next:" in str(refusal.value)
    assert (fetch(version, "", runs_root) / "config.json").is_file()
    assert [path.name for path in (runs_root / "teachers").iterdir()] == [version.name]


def test_a_teacher_does_not_choose_its_codec(teacher, monkeypatch):
    words = "python -m flows.compress_model --set teacher.family=llasa --set teacher.codec=stranger/codec@0123"
    done = SimpleNamespace(returncode=0, stdout=words, stderr="")
    monkeypatch.setattr("tasks.teacher_settings.subprocess.run", lambda *_, **__: done)
    with pytest.raises(InvalidInputError, match="files that name the codec stranger/codec@0123"):
        teacher_overrides(teacher)
    assert teacher_overrides(teacher, ["teacher.codec=stranger/codec@0123"])[0] == "teacher.family=llasa"
    done.stdout = f"x --set teacher.codec={teacher}"
    assert teacher_overrides(teacher) == [f"teacher.codec={teacher}"], "within its own folder"


@pytest.mark.parametrize("source", ["teachers/nano", "s3://", "models:/name/3", "https://example.org/x"])
def test_other_sources_are_refused(source, tmp_path):
    with pytest.raises(InvalidInputError, match="s3://bucket/prefix or models:/name@alias"):
        newest_version(source, "", tmp_path, "", 0)


def test_bucket_that_does_not_answer_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("tasks.bucket.ATTEMPTS", 1)
    with pytest.raises(SlimttsError, match=r"s3://bucket/nano: .*next: check AWS_\* and the endpoint"):
        newest_version("s3://bucket/nano", "http://127.0.0.1:9", tmp_path, "", 0)


def remembered():
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        response = client._client.post("/variables/filter", json={})
        return [variable["name"] for variable in response.json() if variable["name"].startswith("teacher_")]
