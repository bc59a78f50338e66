"""Folders as they are; hub ids only at one commit; every failure in one line. No test reaches a network."""

from fnmatch import fnmatch

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from slimtts.errors import InvalidInputError
from slimtts.model_files import SAFE_FILES
from slimtts.params import TeacherParams
from slimtts.teachers import loading
from slimtts.teachers.sources import resolve_checkpoint, resolve_codec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """What was asked of the hub; the answer is a folder."""
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_folder_is_taken_as_it_is(tmp_path, downloads):
    assert resolve_checkpoint(str(tmp_path), "") == tmp_path
    assert resolve_codec(str(tmp_path), "owner/own") == tmp_path
    assert downloads == []


def test_a_hub_id_is_fetched_at_its_commit(tmp_path, downloads):
    assert resolve_checkpoint("owner/name-1.B", COMMIT) == tmp_path
    assert resolve_codec(f"owner/codec@{COMMIT}", "owner/own", ("config.json",)) == tmp_path
    assert downloads == [("owner/name-1.B", COMMIT, SAFE_FILES), ("owner/codec", COMMIT, ("config.json",))]


@pytest.mark.parametrize(
    ("file", "fetched"),
    [
        ("config.json", True), ("model-00001-of-00002.safetensors", True), ("tokenizer.json", True),
        ("merges.txt", True), ("tokenizer.model", True), ("chat_template.jinja", True), ("pytorch_model.bin", False),
        ("model.pt", False), ("modeling_custom.py", False), ("model.gguf", False), ("weights.pkl", False),
    ],
)  # fmt: skip
def test_no_pickle_and_no_code_is_fetched(file, fetched):
    assert any(fnmatch(file, pattern) for pattern in SAFE_FILES) is fetched


@pytest.mark.parametrize("revision", ["", "main", "v1.0", COMMIT[:39], COMMIT.upper(), COMMIT + "0", f"{COMMIT}\n"])
def test_a_revision_that_can_move_is_refused(downloads, revision):
    with pytest.raises(InvalidInputError) as refusal:
        resolve_checkpoint("owner/name", revision)
    line = str(refusal.value)
    assert "\n" not in line
    assert "a branch or tag can change under a result" in line
    assert "copy the full commit from the history of the model's page" in line
    assert downloads == []


@pytest.mark.parametrize("source", ["", "no-such-folder", "/no/such/folder", "../up/name", "a/b/c", ".hidden/name"])
def test_neither_folder_nor_hub_id_is_refused(downloads, source):
    with pytest.raises(InvalidInputError, match='which is no folder; allowed: a folder or a hub id "owner/name"'):
        resolve_checkpoint(source, COMMIT)
    assert downloads == []


@pytest.mark.parametrize("source", ["", "owner/codec", "owner/codec@main", "owner/codec@"])
def test_a_codec_needs_its_commit_too(downloads, source):
    with pytest.raises(InvalidInputError, match=r"teacher\.codec: .*owner/own@<40 hex digits>"):
        resolve_codec(source, "owner/own")
    assert downloads == []


@pytest.mark.parametrize(
    "error", [httpx.ProxyError("no proxy\nat all"), OSError("no route"), ValueError(""), httpx.ReadTimeout("")]
)
def test_a_silent_hub_is_told_in_one_line(monkeypatch, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InvalidInputError) as refusal:
        resolve_checkpoint("owner/name", COMMIT)
    line = str(refusal.value)
    assert line.startswith(f"teacher.source owner/name at {COMMIT}: observed ")
    assert (str(error).split("\n")[0] or type(error).__name__) in line
    assert "\n" not in line
    assert line.endswith("check the id, the commit and the connection, or name a folder with the files")


def test_offline_the_real_client_finds_nothing_in_an_empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"teacher\.source owner/name at .*the local cache holds"):
        resolve_checkpoint("owner/name", COMMIT)


def test_load_teacher_asks_for_the_revision_of_the_params(downloads):
    params = TeacherParams(family="llasa", source="owner/name", revision=COMMIT)
    with pytest.raises(InvalidInputError, match=r"teacher\.source: observed owner/name; .* a folder with config\.json"):
        loading.load_teacher(params)
    assert downloads == [("owner/name", COMMIT, SAFE_FILES)]
