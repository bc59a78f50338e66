"""Files of strangers: nothing in them is run, and no path in them leads out of their folder.

Every payload would write a marker; every test looks for it.
"""

import ast
import gzip
import hashlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import soundfile
import torch
import yaml
from pyarrow import parquet

from slimtts.data.code_cache import read_shards
from slimtts.data.sources import open_path, token_corpus_source
from slimtts.data.speech_source import CodecFacts
from slimtts.errors import InvalidInputError
from slimtts.storage import files_sha256
from slimtts.teachers.checkpoint import load_language_model, load_tokenizer
from slimtts.teachers.cosyvoice2_checkpoint import LLM, QWEN, convert_llm_pt
from slimtts.testing.cosyvoice_folder import write_cosyvoice_folder
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.tiny import tiny_model
from tasks import fetch_model as fetching
from tasks.fetch_model import KNOWN_CODE_SHA256, check_mlmodel, check_names, fetch_model, is_student_file

SOURCES = Path(__file__).resolve().parents[2] / "src" / "slimtts"
CODE = Path(__file__).resolve().parents[2] / "tasks" / "speech_pyfunc.py"


class Payload:
    """Unpickled, it writes the marker."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """Absent before and after."""
    path = tmp_path / "payload-ran"
    yield path
    assert not path.exists(), "the payload ran"


def python_payload(marker):
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"


def refused(error):
    told = str(error.value)
    assert "\n" not in told
    assert "observed" in told
    assert "next:" in told
    return told


# Checkpoints


def test_the_payload_is_one(tmp_path):
    """What the others prove rests on this."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").exists()
    exec(python_payload(tmp_path / "too"))  # noqa: S102
    assert (tmp_path / "too").exists()


def checkpoint(folder):
    tiny_model(num_layers=1).save_pretrained(folder)
    return folder


def test_a_pickle_beside_the_weights_is_not_read(tmp_path, marker):
    folder = checkpoint(tmp_path / "model")
    torch.save(Payload(marker), folder / "pytorch_model.bin")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload(marker)))
    assert load_language_model(folder).config.num_hidden_layers == 1


def test_a_pickle_instead_of_the_weights_is_refused(tmp_path, marker):
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInputError) as error:
        load_language_model(folder)
    assert "no *.safetensors file" in refused(error)


def test_a_pickle_that_is_named_as_safetensors_is_refused(tmp_path, marker):
    folder = checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(InvalidInputError) as error:
        load_language_model(folder)
    refused(error)


@pytest.fixture
def nobody_is_asked(monkeypatch):
    """transformers would ask at the terminal whether to run a checkpoint's code; somebody might say yes."""

    def yes(*_):
        return "y"

    monkeypatch.setattr("builtins.input", yes)


@pytest.mark.usefixtures("nobody_is_asked")
@pytest.mark.parametrize("kind", ["unknown", "llama"])
def test_code_of_a_checkpoint_is_not_run(tmp_path, marker, kind):
    folder = checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("evil.py", "modeling.py", "__init__.py"):
        (folder / name).write_text(python_payload(marker))
    if kind == "llama":  # our own class is used, whatever else is offered
        assert type(load_language_model(folder)).__module__.startswith("transformers.models.llama")
        return
    with pytest.raises(InvalidInputError) as error:
        load_language_model(folder)
    assert "custom code" in refused(error)


@pytest.mark.usefixtures("nobody_is_asked")
def test_code_of_a_tokenizer_is_not_run(tmp_path, marker):
    folder = write_teacher_folder("llasa", tmp_path / "model", 16)
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        values = json.loads(path.read_text())
        values |= {"auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"], "AutoConfig": "evil.Config"}}
        path.write_text(json.dumps(values | {"tokenizer_class": "EvilTokenizer", "model_type": "unknown"}))
    (folder / "evil.py").write_text(python_payload(marker))
    with pytest.raises(InvalidInputError) as error:
        load_tokenizer(folder)
    refused(error)


def test_no_load_path_leaves_the_question_open():
    """Every Auto class is told not to trust, every torch.load reads tensors alone, every np.load no objects."""
    told = []
    for path in SOURCES.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            name, given = ast.unparse(call.func), {key.arg: ast.unparse(key.value) for key in call.keywords}
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                told.append((path.name, given.get("trust_remote_code") == "False"))
            if name == "torch.load":
                told.append((path.name, given.get("weights_only") == "True"))
            if name == "np.load":
                told.append((path.name, given.get("allow_pickle", "False") == "False"))
            if name.split(".")[0] in ("pickle", "cloudpickle", "joblib", "dill", "marshal", "shelve"):
                told.append((path.name, False))
    assert len(told) >= 6
    assert [name for name, is_safe in told if not is_safe] == []


def test_a_cosyvoice_checkpoint_with_a_payload_is_refused(tmp_path, marker):
    folder = write_cosyvoice_folder(tmp_path / "cosy", 16)
    torch.save({"llm_embedding.weight": Payload(marker)}, folder / LLM)
    with pytest.raises(InvalidInputError) as error:
        convert_llm_pt(folder)
    assert LLM in refused(error)


def test_a_cosyvoice_checkpoint_that_is_a_plain_pickle_is_refused(tmp_path, marker):
    folder = write_cosyvoice_folder(tmp_path / "cosy", 16)
    (folder / LLM).write_bytes(pickle.dumps(Payload(marker), protocol=2))
    with pytest.raises(InvalidInputError) as error:
        convert_llm_pt(folder)
    refused(error)


@pytest.mark.usefixtures("nobody_is_asked")
def test_code_of_cosyvoices_text_model_is_not_run(tmp_path, marker):
    folder = write_cosyvoice_folder(tmp_path / "cosy", 16)
    path = folder / QWEN / "tokenizer_config.json"
    evil = {"auto_map": {"AutoTokenizer": ["evil.Slow", None]}, "tokenizer_class": "EvilTokenizer"}
    path.write_text(json.dumps(json.loads(path.read_text()) | evil))
    (folder / QWEN / "evil.py").write_text(python_payload(marker))
    try:
        convert_llm_pt(folder)  # our own tokenizer class may read the rest
    except InvalidInputError as error:
        assert "\n" not in str(error)


def npz_with_payload(path, marker, *names):
    array = io.BytesIO()
    np.save(array, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, array.getvalue())


def test_a_pickled_array_among_cached_codes_is_removed(tmp_path, marker):
    npz_with_payload(tmp_path / "codes-0.npz", marker, "ids.npy", "offsets.npy", "codes.npy")
    assert read_shards(tmp_path, 16) == {}
    assert not (tmp_path / "codes-0.npz").exists()


def test_a_pickled_array_in_a_corpus_is_refused(tmp_path, marker):
    npz_with_payload(tmp_path / "codes.npz", marker, "codes.npy", "offsets.npy")
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "text": "a", "voice": "v"}\n')
    with pytest.raises(InvalidInputError) as error:
        token_corpus_source(tmp_path, FACTS)
    refused(error)


# Registered models

SHA256_OF_CODE = hashlib.sha256(CODE.read_bytes()).hexdigest()


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
        self.tags = {"student_sha256": files_sha256(sorted(student.glob("*.safetensors")))}
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
    (no_weights, "as in its tag student_sha256"), (linked_weights, "no plain file"),
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


# Data

FACTS = CodecFacts(16_000, 25.0, 16, lambda waves: torch.zeros(waves.shape[0], 4, dtype=torch.int64))


@pytest.fixture
def secret(tmp_path):
    """A sound file outside the data root: nothing but its place is wrong with it."""
    path = tmp_path / "secret.wav"
    soundfile.write(path, np.sin(np.arange(16_000) / 20) * 0.3, 16_000)
    return path


def manifest_row(audio):
    return {"id": "u1", "text": "hello there.", "voice": "v", "audio": audio}


def as_manifest(root, audio):
    (root / "manifest.jsonl").write_text(json.dumps(manifest_row(audio)) + "\n")
    return root / "manifest.jsonl"


def as_parquet(root, audio):
    parquet.write_table(pyarrow.Table.from_pylist([manifest_row(audio)]), root / "rows.parquet")
    return root / "rows.parquet"


def as_cuts(root, audio):
    source = {"type": "file", "channels": [0], "source": audio}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16_000, "duration": 1.0}
    spoken = {"id": "s", "start": 0.0, "duration": 1.0, "text": "hello there.", "speaker": "v"}
    cut = {
        "type": "MonoCut",
        "id": "u1",
        "start": 0.0,
        "duration": 1.0,
        "supervisions": [spoken],
        "recording": recording,
    }
    with gzip.open(root / "cuts.jsonl.gz", "wt") as lines:
        lines.write(json.dumps(cut) + "\n")
    return root / "cuts.jsonl.gz"


def as_dataset(root, audio):
    table = pyarrow.table({"text": ["hello there."], "audio": [audio]})
    with pyarrow.OSFile(str(root / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return root


WAYS_OUT = {
    "absolute": lambda root, secret: str(secret),
    "up": lambda root, secret: "../secret.wav",
    "up and down": lambda root, secret: f"../{root.name}/../secret.wav",
    "linked file": lambda root, secret: (root / "in.wav").symlink_to(secret) or "in.wav",
    "linked folder": lambda root, secret: (root / "in").symlink_to(secret.parent) or "in/secret.wav",
    "link to a link": lambda root, secret: (
        (root / "a").symlink_to(secret), (root / "in.wav").symlink_to("a"), "in.wav"
    )[-1],
    "NUL": lambda root, secret: "in\0.wav",
}  # fmt: skip


@pytest.mark.parametrize("way_out", WAYS_OUT)
@pytest.mark.parametrize("kind", [as_manifest, as_parquet, as_cuts, as_dataset], ids=lambda kind: kind.__name__)
def test_no_row_leads_out_of_its_folder(tmp_path, secret, kind, way_out):
    root = tmp_path / "data"
    root.mkdir()
    source = kind(root, WAYS_OUT[way_out](root, secret))
    for drop in (False, True):  # dropping bad audio does not drop this
        with pytest.raises(InvalidInputError) as error:
            open_path(source, FACTS, None, drop)
        assert "below the manifest's folder" in refused(error)


@pytest.mark.parametrize("kind", [as_manifest, as_parquet, as_cuts, as_dataset], ids=lambda kind: kind.__name__)
def test_the_same_sound_in_its_folder_is_read(tmp_path, secret, kind):
    root = tmp_path / "data"
    root.mkdir()
    secret.rename(root / "in.wav")
    source = open_path(kind(root, "in.wav"), FACTS, None, False)
    assert len(source.candidates) == 1


def test_the_files_of_a_dataset_lie_in_it(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    as_dataset(root, "x.wav")
    (root / "data.arrow").rename(tmp_path / "data.arrow")
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../data.arrow"}]}))
    with pytest.raises(InvalidInputError) as error:
        open_path(root, FACTS, None, False)
    refused(error)


@pytest.mark.parametrize("utterance", ["../../secret", "a/../../../secret", "/etc/passwd"])
def test_an_id_of_ljspeech_is_no_path(tmp_path, secret, utterance):
    root = tmp_path / "data"
    (root / "wavs").mkdir(parents=True)
    (root / "metadata.csv").write_text(f"{utterance}|hello|hello there\n")
    with pytest.raises(InvalidInputError) as error:
        open_path(root, FACTS, None, True)
    refused(error)


def test_the_wavs_of_ljspeech_lie_in_it(tmp_path, secret):
    root = tmp_path / "data"
    root.mkdir()
    (root / "wavs").symlink_to(tmp_path)
    (root / "metadata.csv").write_text("secret|hello|hello there\n")
    with pytest.raises(InvalidInputError) as error:
        open_path(root, FACTS, None, True)
    assert "below the manifest's folder" in refused(error)


@pytest.mark.parametrize("linked", ["a.wav", "a.normalized.txt"])
def test_sounds_and_texts_of_libritts_lie_in_it(tmp_path, secret, linked):
    chapter = tmp_path / "data" / "12" / "34"
    chapter.mkdir(parents=True)
    (tmp_path / "text").write_text("words of a stranger.")
    (chapter / "a.normalized.txt").write_text("hello there.")
    shutil.copy(secret, chapter / "a.wav")
    (chapter / linked).unlink()
    (chapter / linked).symlink_to(secret if linked == "a.wav" else tmp_path / "text")
    with pytest.raises(InvalidInputError) as error:
        open_path(tmp_path / "data", FACTS, None, True)
    assert "below the manifest's folder" in refused(error)
