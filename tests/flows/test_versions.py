"""From a version back to its sources, and back to a workspace: real DVC, real MLflow store, toy stages."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess

import pytest
import yaml

from slimtts.errors import InvalidInputError
from slimtts.storage import files_sha256
from slimtts.workspace import STAGES
from tasks import restoration
from tasks.checkouts import is_own_commit
from tasks.evidence import EVIDENCE, Evidence
from tasks.lineage import lineage_text, version_lineage
from tasks.output_bytes import object_path
from tasks.promotion import Promotions, Request
from tasks.promotion_log import PromotionLog
from tasks.registry import register_release
from tasks.restoration import restore_version
from tasks.stage_runner import CACHE, run_stage, stale_stages
from tasks.tracking import open_run
from tasks.versions import main
from tasks.workspace import prepare_workspace
from tests.flows.toy_release import MODEL, toy_release

logger = logging.getLogger("test")
REMOTE = "s3://speech/runs"
HASHES = {"data": "data", "teacher": "teacher", "student": "student-1"}


@pytest.fixture(scope="module")
def finished(toy_checkout, empty_mlflow_db, tmp_path_factory):
    """Runs whose toy pipeline has registered version 1; made once, because DVC takes a second a stage."""
    root = tmp_path_factory.mktemp("restored") / "runs"
    root.mkdir()
    shutil.copy(empty_mlflow_db, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("TOY_LOG", str(root / "toy.log"))
        patch.setenv("SLIMTTS_GIT_SHA", "abc")
        workspace = prepare_workspace("toy", "demo", [f"storage.dvc_remote={REMOTE}"], root, toy_checkout)
        for stage in STAGES:
            run_stage(stage, workspace, 60, logger)
        run = open_run(workspace, "demo")
        register_release(run, promote=True)
    return run


@pytest.fixture
def restore(finished, toy_checkout, tmp_path, monkeypatch):
    """Restores version 1 with the toy checkout as the user's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(restoration, "CHECKOUT", toy_checkout)

    def make(into="again", observe=lambda *_: HASHES, overrides=()):
        place = tmp_path / into
        restore_version(finished.client, MODEL, "1", place, finished.workspace.parent, logger, overrides, observe)
        return place

    return make


def test_a_version_leads_back_to_everything_it_came_from(finished):
    found = version_lineage(finished.client, MODEL, "1")
    assert (found.run_id, found.aliases, found.verdict) == (finished.run_id, ["candidate", "production"], "ACCEPT")
    origin = found.lineage
    assert (origin.data_sha256, origin.teacher_sha256, origin.student_sha256) == ("data", "teacher", "student-1")
    assert origin.retained == [0, 1, 2, 3, 4, 5]
    assert found.params == yaml.safe_load((finished.workspace / "params.yaml").read_text())
    assert found.metrics["lm_speedup"] == 2.0
    text = lineage_text(found)
    lines = text.splitlines()
    assert lines[0] == "version        slimtts-nano 1 @candidate @production"
    for part in (finished.run_id, origin.git_sha, "[0, 1, 2, 3, 4, 5]", "distill_student.seed", "lm_speedup"):
        assert part in text


def test_a_version_becomes_its_workspace_again(finished, restore):
    place = restore(overrides=[f"storage.dvc_remote={REMOTE}"])
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        assert (place / name).read_text() == (finished.workspace / name).read_text()
    for path in ("student/student/weights", "evaluation/evaluation.json", "release/release.json", "data/report.json"):
        assert (place / path).read_bytes() == (finished.workspace / path).read_bytes()
    stale = stale_stages(place)
    changed = {key for found in stale.values() for entry in found for key in entry.get("changed outs", {})}
    assert all(path.startswith("progress/") for path in changed), stale
    with pytest.raises(InvalidInputError, match=r"--into: observed .*which holds something"):
        restore()


def test_an_empty_folder_may_be_filled(restore, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (restore("empty") / "student" / "student" / "weights").read_text() == "1"


def test_what_is_not_what_was_registered_is_refused_and_leaves_nothing(restore, tmp_path):
    with pytest.raises(InvalidInputError, match="teacher of the version: observed other; allowed: teacher, as in its"):
        restore(observe=lambda *_: {**HASHES, "teacher": "other"})
    with pytest.raises(InvalidInputError, match="data, student of the version"):
        restore(observe=lambda *_: {"teacher": "teacher"})
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_nowhere_is_named(finished, restore, tmp_path, monkeypatch):
    """Neither in the cache nor in the remote, whose server does not answer."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    cache = finished.workspace.parent / CACHE
    lock = yaml.safe_load((finished.workspace / "dvc.lock").read_text())
    (data,) = [out["md5"] for out in lock["stages"]["subset_data"]["outs"] if out["path"] == "data"]
    lost = next(cache.rglob(f"{data[2:]}"))
    kept = tmp_path / "kept"
    lost.rename(kept)
    try:
        with pytest.raises(
            InvalidInputError, match=r"outputs: observed data in neither cache nor remote \(s3://speech"
        ):
            restore("lost", overrides=[f"storage.dvc_remote={REMOTE}"])
        with pytest.raises(InvalidInputError, match=r"data in neither cache nor remote \(none is set\)"):
            restore("lost")
    finally:
        kept.rename(lost)
    assert not (tmp_path / "lost").exists()


def test_the_code_is_that_of_the_commit_where_the_checkout_has_it(finished, tmp_path, monkeypatch, caplog):
    checkout, workspace = tmp_path / "checkout", tmp_path / "workspace"
    (checkout / "src").mkdir(parents=True)
    workspace.mkdir()
    (checkout / "src" / "code.py").write_text("then")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "then"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "src" / "code.py").write_text("now")
    monkeypatch.setattr(restoration, "CHECKOUT", checkout)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    lineage = version_lineage(finished.client, MODEL, "1").lineage

    def code(sha):
        return restoration._code(workspace, lineage.model_copy(update={"git_sha": sha}), logger)

    assert (workspace / code(commit) / "src" / "code.py").read_text() == "then"
    assert not code(commit).is_absolute(), "the folder may be moved"
    assert (code(f"{commit}-dirty") / "src" / "code.py").read_text() == "now"
    assert "the version was made by" in caplog.text
    for command in (["checkout", "-q", "-b", "strangers"], ["commit", "-qam", "theirs"], ["checkout", "-q", "-"]):
        subprocess.run([*git, *command], check=True)
    theirs = subprocess.run([*git, "rev-parse", "strangers"], capture_output=True, text=True, check=True).stdout.strip()
    assert is_own_commit(checkout, theirs), "on a branch of one's own"
    subprocess.run([*git, "update-ref", "refs/remotes/origin/strangers", theirs], check=True)
    subprocess.run([*git, "branch", "-qD", "strangers"], check=True)
    assert not is_own_commit(checkout, theirs), "fetched only"
    assert code(theirs) == checkout


def test_history_lineage_and_their_json_on_the_command_line(runs_root, monkeypatch, capsys):
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    monkeypatch.setenv("SLIMTTS_ACTOR", "ann")
    run = toy_release(runs_root, "a")
    register_release(run, promote=True)
    register_release(toy_release(runs_root, "b", seed=2), promote=True)
    Promotions(run.client, runs_root, MODEL).roll_back("", Request("bob", "clicks"))

    def said(*arguments):
        assert main([*arguments, "--runs", str(runs_root)]) == 0
        return capsys.readouterr().out

    lines = said("history").splitlines()
    assert [line.split("Z  ")[1] for line in lines[:-1]][2] == 'rolled_back  2 -> 1  by bob: "clicks"'
    assert lines[0].split("Z  ")[1].startswith("promoted ACCEPT  none -> 1  by ann: The upper 95 %")
    assert lines[-1] == "in production: version 1"
    events = json.loads(said("history", "--json"))
    assert [(event["action"], event["former_version"], event["version"]) for event in events] == [
        ("promoted", None, "1"), ("promoted", "1", "2"), ("rolled_back", "2", "1"),
    ]  # fmt: skip
    kept = PromotionLog(run.client, runs_root, MODEL).read().events
    assert events == [json.loads(event.model_dump_json()) for event in kept]
    assert json.loads(said("lineage", "2", "--json"))["lineage"]["student_sha256"] == "student-2"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["history", "--model", "nobody"], "--model: observed nobody"),
        (["lineage", "9"], "version of slimtts-nano: observed '9'; allowed: 1"),
        (["restore", "9", "--into", "nowhere"], "version of slimtts-nano: observed '9'; allowed: 1"),
    ],
)
def test_what_is_not_there_is_one_line(finished, arguments, told, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([*arguments, "--runs", str(finished.workspace.parent)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_folder_without_a_registry_stays_without(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["history", "--runs", str(tmp_path)]) == 2
    assert "registry: observed no sqlite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def evidence_folder(finished):
    """What the registry keeps of version 1; as it was afterwards."""
    [folder] = {path.parent for path in (finished.workspace.parent / "mlartifacts").rglob("decision/*/dvc.lock")}
    before = {path: path.read_bytes() for path in folder.iterdir()}
    tag = finished.client.get_model_version(MODEL, "1").tags[EVIDENCE]
    yield folder
    for path, content in before.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    finished.client.set_model_version_tag(MODEL, "1", EVIDENCE, tag)


def tag_again(finished, folder):
    """As somebody does who can write to the registry too: the hashes fit what lies there."""
    run_id, evaluation, *_ = finished.client.get_model_version(MODEL, "1").tags[EVIDENCE].split()
    hashes = [f"{path.name}={files_sha256([path])}" for path in sorted(folder.iterdir())]
    finished.client.set_model_version_tag(MODEL, "1", EVIDENCE, " ".join([run_id, evaluation, *hashes]))


def change_yaml(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def strangers_server():
    """A server that counts who comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock", "release.json", "evaluation.json"])
def test_every_file_of_a_version_is_as_it_was_registered(finished, restore, evidence_folder, tmp_path, name):
    with (evidence_folder / name).open("a") as stream:
        stream.write(" ")
    what = f"{name.removesuffix('.json')} of slimtts-nano version 1: observed hash "
    with pytest.raises(InvalidInputError, match=re.escape(what)):
        restore()
    with pytest.raises(InvalidInputError, match=re.escape(what)):
        Evidence.of_version(finished.client, MODEL, "1")
    assert list(tmp_path.iterdir()) == []


def test_a_version_cannot_bring_code(finished, restore, evidence_folder, toy_checkout, strangers_server, tmp_path):
    """An output below src, from the server that the version's params name, with hashes in the tags that fit."""
    outs = [{"path": "src/sitecustomize.py", "hash": "md5", "md5": "0" * 32, "size": 1}]
    change_yaml(evidence_folder / "dvc.yaml", lambda d: d["stages"]["subset_data"]["outs"].append(outs[0]["path"]))
    change_yaml(evidence_folder / "dvc.lock", lambda d: d["stages"]["subset_data"]["outs"].extend(outs))
    change_yaml(
        evidence_folder / "params.yaml",
        lambda d: d["storage"].update(dvc_remote="s3://stranger/x", s3_endpoint=strangers_server),
    )
    change_yaml(evidence_folder / "release.json", lambda d: d["lineage"].update(git_sha="unknown"))
    release = yaml.safe_load((evidence_folder / "release.json").read_text())
    (evidence_folder / "release.json").write_text(json.dumps(release))
    tag_again(finished, evidence_folder)
    with pytest.raises(InvalidInputError, match=r"dvc.lock: observed output 'src/sitecustomize.py' of stage 'subset_"):
        restore()
    assert not (toy_checkout / "src" / "sitecustomize.py").exists()
    assert list(tmp_path.iterdir()) == []


def test_remote_and_commands_are_ones_own(finished, restore, evidence_folder, strangers_server, caplog):
    for stage in STAGES:
        change_yaml(evidence_folder / "dvc.yaml", lambda d, stage=stage: d["stages"][stage].update(cmd="touch ran"))
    change_yaml(
        evidence_folder / "params.yaml",
        lambda d: d["storage"].update(dvc_remote="s3://stranger/x", s3_endpoint=strangers_server),
    )
    tag_again(finished, evidence_folder)
    place = restore()
    assert "touch ran" not in (place / "dvc.yaml").read_text()
    assert yaml.safe_load((place / "params.yaml").read_text())["storage"] == {"dvc_remote": "", "s3_endpoint": ""}
    assert "stranger" not in (place / ".dvc" / "config").read_text()
    assert "the version names the remote 's3://stranger/x'; it is asked only if you name it" in caplog.text
    assert (place / "src").readlink().name == "src"


def test_a_version_of_an_earlier_release_opens_by_what_its_tags_prove(finished, restore, evidence_folder):
    tag = finished.client.get_model_version(MODEL, "1").tags[EVIDENCE]
    finished.client.set_model_version_tag(MODEL, "1", EVIDENCE, " ".join(tag.split()[:2]))
    assert Evidence.of_version(finished.client, MODEL, "1").release.verdict.decision == "ACCEPT"
    with pytest.raises(InvalidInputError, match=r"without hashes of params.yaml.*next: run its compression again"):
        restore()
    release = json.loads((evidence_folder / "release.json").read_text())
    release["lineage"]["student_sha256"] = "another"
    (evidence_folder / "release.json").write_text(json.dumps(release))
    with pytest.raises(InvalidInputError, match="observed other student_sha256 than in its tags"):
        Evidence.of_version(finished.client, MODEL, "1")


def test_evidence_that_is_a_link_is_not_followed(finished, restore, evidence_folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes((evidence_folder / "params.yaml").read_bytes())
    (evidence_folder / "params.yaml").unlink()
    (evidence_folder / "params.yaml").symlink_to(secret)
    with pytest.raises(InvalidInputError, match="which is a link"):
        restore()


def objects_of(finished, path):
    cache = finished.workspace.parent / CACHE
    lock = yaml.safe_load((finished.workspace / "dvc.lock").read_text())
    [output] = [out for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == path]
    listing = object_path(cache, output["md5"])
    return [object_path(cache, entry["md5"]) for entry in json.loads(listing.read_text())]


@pytest.mark.parametrize("path", ["data", "scores", "pruned", "student", "evaluation", "release"])
def test_one_byte_in_the_cache_is_noticed_in_every_output(finished, restore, tmp_path, path):
    """Time, size and mode are kept."""
    damaged = max(objects_of(finished, path), key=lambda file: file.stat().st_size)
    good, status = damaged.read_bytes(), damaged.stat()
    damaged.chmod(0o644)
    with damaged.open("r+b") as stream:
        stream.write(bytes([good[0] ^ 1]))
    damaged.chmod(status.st_mode)
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        with pytest.raises(InvalidInputError, match=f"outputs: observed {path} in neither cache nor remote"):
            restore()
        assert not damaged.exists(), "nobody else takes it either"
    finally:
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(good)
    assert list(tmp_path.iterdir()) == []
