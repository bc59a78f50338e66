"""Model versions that somebody changed: refused, unopened, with nothing of them run.

Every payload would write a marker; every test looks for it.
"""

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from slimtts.errors import InvalidInputError
from slimtts.storage import files_sha256, folder_sha256
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.payloads import Payload, python_payload
from slimtts.testing.tiny import tiny_model
from tasks import fetch_model as fetching
from tasks.fetch_model import KNOWN_CODE_SHA256, MODEL_FILES, check_mlmodel, check_names, fetch_model, is_student_file

CODE = Path(__file__).resolve().parents[2] / "tasks" / "speech_pyfunc.py"
SHA256_OF_CODE = hashlib.sha256(CODE.read_bytes()).hexdigest()


@pytest.fixture
def marker(tmp_path):
    """Absent before and after."""
    path = tmp_path / "payload-ran"
    yield path
    assert not path.exists(), "the payload ran"


def refused(error):
    told = str(error.value)
    assert "\n" not in told
    assert "observed" in told
    assert "next:" in told
    return told


def checkpoint(folder):
    tiny_model(num_layers=1).save_pretrained(folder)
    return folder


def test_the_code_that_versions_hold_is_known():
    """A changed speech_pyfunc.py: add its hash to KNOWN_CODE_SHA256 and keep the former ones."""
    assert SHA256_OF_CODE in KNOWN_CODE_SHA256


class Version:
    """A model version on disk, laid out as MLflow lays it out, behind the client's three calls."""

    def __init__(self, root):
        self.root, self.downloaded = root, []
        self.run_id, self.name, self.version = "f" * 32, "slimtts-toy", 3
        self.source = f"runs:/{self.run_id}/model-0123456789ab"
        self.folder = root / "model-0123456789ab"
        student = checkpoint(self.folder / "artifacts" / "model")
        (student / "voices.json").write_text('{"voices": {}}')
        (student / "LICENSE").write_text("as you like")
        hashes = files_sha256(sorted(student.glob("*.safetensors")))
        self.tags = {"student_sha256": hashes, MODEL_FILES: folder_sha256(student)}
        self.tracking_uri, self.artifact_uri = f"sqlite:///{root / 'mlflow.db'}", str(root)
        shutil.copy(CODE, self.folder)
        for name in ("conda.yaml", "python_env.yaml", "requirements.txt"):
            (self.folder / name).write_text("x")
        self.mlmodel = {
            "loader_module": "mlflow.pyfunc.loaders.code_model", "model_code_path": "/somewhere/speech_pyfunc.py",
            "code": None, "artifacts": {"student": {"path": "artifacts/model", "uri": "/somewhere"}},
        }  # fmt: skip
        self.write_mlmodel()

    @property
    def student(self):
        return self.folder / "artifacts" / "model"

    def write_mlmodel(self, **changes):
        flavor = {key: value for key, value in {**self.mlmodel, **changes}.items() if value != "absent"}
        (self.folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}}))

    def get_run(self, run_id):
        assert run_id == self.run_id
        return SimpleNamespace(info=SimpleNamespace(artifact_uri=self.artifact_uri))

    def list_artifacts(self, run_id, path):
        assert run_id == self.run_id
        return [
            SimpleNamespace(path=str(child.relative_to(self.root)), is_dir=child.is_dir(), file_size=size_of(child))
            for child in sorted((self.root / path).iterdir())
        ]

    def download_artifacts(self, run_id, path, to):
        self.downloaded.append(path)
        local = Path(to) / path
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.root / path, local, follow_symlinks=False)
        return str(local)


def size_of(path):
    return path.lstat().st_size


@pytest.fixture
def version(tmp_path, monkeypatch):
    made = Version(tmp_path / "store")
    monkeypatch.setattr(fetching, "resolve", lambda *_: made)
    return made


def fetch(version, tmp_path, **how):
    return fetch_model(version, "models:/slimtts-toy@production", tmp_path / "fetched", **how)


def test_of_a_version_only_the_students_files_arrive(version, tmp_path, marker):
    fetched = fetch(version, tmp_path)
    assert (fetched.version, fetched.run_id) == ("3", version.run_id)
    arrived = {path.name for path in Path(fetched.folder).iterdir()}
    assert arrived == {path.name for path in version.student.iterdir()}
    assert fetch(version, tmp_path, unless_version="3").folder is None
    assert load_language_model(Path(fetched.folder)).config.num_hidden_layers == 1


def test_a_version_of_an_earlier_release_still_opens(version, tmp_path, caplog):
    del version.tags[MODEL_FILES]
    assert Path(fetch(version, tmp_path).folder).is_dir()
    assert "registered by slimtts 0.1; only its weights and its code have hashes" in caplog.text


def test_a_store_that_is_named_as_ones_own_is_read(version, tmp_path, monkeypatch):
    version.tracking_uri, version.artifact_uri = "http://mlflow:5050", "s3://own/mlflow/1/artifacts"
    with pytest.raises(InvalidInputError, match=r"s3://own/mlflow/1/artifacts.*name it in SLIMTTS_ARTIFACT_ROOTS"):
        fetch(version, tmp_path)
    monkeypatch.setenv("SLIMTTS_ARTIFACT_ROOTS", "s3://other s3://own/mlflow/")
    assert Path(fetch(version, tmp_path).folder).is_dir()
    version.artifact_uri = "s3://own/mlflow-of-a-stranger/1"
    with pytest.raises(InvalidInputError, match="mlflow-of-a-stranger"):
        fetch(version, tmp_path)


def as_pickle(version, marker):
    (version.folder / "python_model.pkl").write_bytes(pickle.dumps(Payload(marker)))
    version.write_mlmodel(
        loader_module="mlflow.pyfunc.model", model_code_path="absent", python_model="python_model.pkl"
    )


def other_code(version, marker):
    (version.folder / CODE.name).write_text(python_payload(marker) + CODE.read_text())


def more_code(version, marker):
    (version.folder / "code").mkdir()
    (version.folder / "code" / "slimtts.py").write_text(python_payload(marker))
    version.write_mlmodel(code="code")


def code_beside(version, marker):
    (version.folder / "sitecustomize.py").write_text(python_payload(marker))


def without_code(version, marker):
    (version.folder / CODE.name).unlink()


def pickle_in_student(version, marker):
    torch.save(Payload(marker), version.student / "pytorch_model.bin")


def python_in_student(version, marker):
    (version.student / "modeling_evil.py").write_text(python_payload(marker))


def remote_code_in_student(version, marker):
    path = version.student / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "evil--x.C"}}))


def other_weights(version, marker):
    tiny_model(num_layers=1, seed=9).save_pretrained(version.student)


def no_weights(version, marker):
    (version.student / "model.safetensors").unlink()


def linked_weights(version, marker):
    real = version.student / "model.safetensors"
    real.rename(version.root / "elsewhere")
    real.symlink_to(version.root / "elsewhere")


def pickled_weights(version, marker):
    path = version.student / "model.safetensors"
    path.write_bytes(pickle.dumps(Payload(marker)))


def linked_tokenizer(version, marker):
    path = version.student / "voices.json"
    path.rename(version.root / "voices.json")
    path.symlink_to(version.root / "voices.json")


def linked_folder(version, marker):
    version.folder.rename(version.root / "elsewhere")
    version.folder.symlink_to(version.root / "elsewhere")


def other_voices(version, marker):
    (version.student / "voices.json").write_text('{"voices": {"other": {}}}')


def more_files(version, marker):
    (version.student / "chat_template.jinja").write_text("{{ messages }}")


def fewer_files(version, marker):
    (version.student / "LICENSE").unlink()


def artifacts_of_this_machine(version, marker):
    version.artifact_uri = str(version.root.parent)


def artifacts_of_a_server(version, marker):
    version.artifact_uri = "http://stranger.example/artifacts"


def artifacts_of_another_proxy(version, marker):
    version.artifact_uri = "mlflow-artifacts://stranger.example/1/artifacts"


def artifacts_of_a_bucket(version, marker):
    version.artifact_uri = "s3://stranger/artifacts"


def artifacts_above(version, marker):
    version.artifact_uri = f"file://{version.root}/%2e%2e/store"


def untagged(version, marker):
    version.tags = {}


def local_source(version, marker):
    version.source = f"file://{version.folder}"


def source_of_another_run(version, marker):
    version.source = f"runs:/{'0' * 32}/model"


def two_students(version, marker):
    shutil.copytree(version.student, version.folder / "artifacts" / "other")


def folder_in_student(version, marker):
    (version.student / "deeper").mkdir()
    (version.student / "deeper" / "config.json").write_text("{}")


ATTACKS = [
    (as_pickle, "python_model.pkl"), (other_code, "that this checkout knows"), (more_code, "a folder 'code'"),
    (code_beside, "sitecustomize.py"), (without_code, "no file speech_pyfunc.py"),
    (pickle_in_student, "pytorch_model.bin"), (python_in_student, "modeling_evil.py"),
    (remote_code_in_student, "auto_map"), (other_weights, "as in its tag student_sha256"),
    (no_weights, "as in its tag student_sha256"), (linked_weights, "which is a link"),
    (linked_tokenizer, "which is a link"), (linked_folder, "which is a link"),
    (other_voices, f"in its tag {MODEL_FILES}"), (more_files, MODEL_FILES), (fewer_files, MODEL_FILES),
    (artifacts_of_this_machine, "a place below"), (artifacts_of_a_server, "http://stranger.example"),
    (artifacts_of_another_proxy, "mlflow-artifacts://stranger"), (artifacts_of_a_bucket, "s3://stranger"),
    (artifacts_above, "a place below"),
    (pickled_weights, "as in its tag student_sha256"), (untagged, "64 hex digits"), (local_source, "runs:/"),
    (source_of_another_run, "runs:/"), (two_students, "2 folders of a student"), (folder_in_student, "a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("attack", "told"), ATTACKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_version_that_somebody_changed_is_refused(version, tmp_path, marker, attack, told):
    attack(version, marker)
    with pytest.raises(InvalidInputError) as error:
        fetch(version, tmp_path)
    assert told in refused(error)
    assert not (tmp_path / "fetched").exists()
    assert not [path for path in version.downloaded if path.endswith((".pkl", ".bin"))]


@pytest.mark.parametrize(
    "changes",
    [{"loader_module": "mlflow.pyfunc.model"}, {"loader_module": "os"}, {"loader_module": "absent"}, {"code": "code"},
     {"model_code_path": "evil.py"}, {"model_code_path": "absent"}, {"python_model": "python_model.pkl"},
     {"artifacts": {"student": {"path": "../../etc"}}}, {"artifacts": {}}, {"artifacts": "absent"},
     {"artifacts": {"student": {"path": "artifacts/model"}, "more": {"path": "artifacts/model"}}}],
)  # fmt: skip
def test_an_mlmodel_that_loads_something_else_is_refused(version, tmp_path, changes):
    version.write_mlmodel(**changes)
    with pytest.raises(InvalidInputError, match="MLmodel") as error:
        fetch(version, tmp_path)
    refused(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"flavors: {}", b"flavors: {python_function: {}, sklearn: {}}", b"\xff\xfe\x00", b"{",
     b"flavors: !!python/object/apply:os.system ['touch payload-ran']"],
)  # fmt: skip
def test_an_mlmodel_of_another_kind_is_refused(content):
    with pytest.raises(InvalidInputError) as error:
        check_mlmodel(content, "artifacts/model", "toy")
    refused(error)


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "artifacts/model/../../../evil.json", "/etc/cron.d/evil.txt", "artifacts/model//evil.json",
     "artifacts/../model/evil.json", "artifacts/model/..", "artifacts/model/.hidden.json", "artifacts/model/a\\b.json",
     "artifacts/model/a\nb.json", "artifacts/model/a/b.json", "artifacts/evil.json", "evil.json",
     "artifacts/model/C:evil.json", "artifacts/model/evil.py", "artifacts/model/evil.pkl", "artifacts/model/LICENSE.py",
     "artifacts/model/evil.so", "artifacts/model/evil", "MLmodel/evil.json", ""],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_to_code_are_refused(name):
    good = {"MLmodel": 1, "speech_pyfunc.py": 1, "artifacts/model/config.json": 1}
    assert check_names(good, "toy") == "artifacts/model"
    with pytest.raises(InvalidInputError) as error:
        check_names(good | {name: 1}, "toy")
    refused(error)


def test_a_text_too_large_to_read_is_refused_before_it_is_fetched(version, tmp_path):
    sizes = {"MLmodel": 1 << 40, "speech_pyfunc.py": 1, "artifacts/model/config.json": 1}
    with pytest.raises(InvalidInputError, match="at most"):
        check_names(sizes, "toy")


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00002.safetensors", "merges.txt", "README.md", "NOTICE"]
)
def test_a_students_files_are_let_through(name):
    assert is_student_file(name)
