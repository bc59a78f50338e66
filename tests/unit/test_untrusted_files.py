"""Checkpoints and arrays of strangers: nothing in them is run.

Every payload would write a marker; every test looks for it.
"""

import ast
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from slimtts.data.code_cache import read_shards
from slimtts.data.sources import token_corpus_source
from slimtts.data.speech_source import CodecFacts
from slimtts.errors import InvalidInputError
from slimtts.teachers.checkpoint import load_language_model, load_tokenizer
from slimtts.teachers.cosyvoice2_checkpoint import LLM, QWEN, convert_llm_pt
from slimtts.testing.cosyvoice_folder import write_cosyvoice_folder
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.payloads import Payload, python_payload
from slimtts.testing.tiny import tiny_model

SOURCES = Path(__file__).resolve().parents[2] / "src" / "slimtts"
FACTS = CodecFacts(16_000, 25.0, 16, lambda waves: torch.zeros(waves.shape[0], 4, dtype=torch.int64))


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
