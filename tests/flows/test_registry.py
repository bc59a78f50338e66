"""Versions and promotion on a real MLflow store; the results come from the toy stages, without DVC."""

import base64
import importlib.util
import io
import json
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from slimtts.errors import InvalidInputError
from slimtts.results import EvaluationReport, ModelOrigin, Release, Verdict
from slimtts.workspace import STAGES, Workspace
from tasks.registry import decide, production_version, register_release, roll_back
from tasks.tracking import open_run
from tasks.workspace import compose_params

MODEL = "slimtts-nano"


def _toy_stage(toy_checkout):
    spec = importlib.util.spec_from_file_location("toy_stage", toy_checkout / "src" / "toy_stage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def released(runs_root, toy_checkout, monkeypatch):
    """Makes a workspace with a finished release of the student with this seed, and opens its run."""
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")

    def make(name, seed=1):
        root = runs_root / name
        params = compose_params("demo", [f"distill_student.seed={seed}"]).model_dump()
        workspace = Workspace(root)
        for folder in (workspace.data, workspace.scores, workspace.pruned, workspace.evaluation):
            folder.mkdir(parents=True)
        workspace.params.write_text(yaml.safe_dump(params))
        toy = _toy_stage(toy_checkout)
        for stage in STAGES:
            getattr(toy, stage)(params, workspace)
        return open_run(root, "demo")

    return make


def _judged(run, decision):
    """The same release under another verdict, from an evaluation of its own."""
    workspace = Workspace(run.workspace)
    path = workspace.release / "release.json"
    verdict = Verdict(decision=decision, reasons=[f"a toy's {decision}"])
    Release.read(path).model_copy(update={"verdict": verdict}).write(path)
    report = workspace.evaluation / "evaluation.json"
    EvaluationReport.read(report).model_copy(update={"machine": decision}).write(report)


def _events(runs_root):
    path = runs_root / "promotions.jsonl"
    return [json.loads(line)["action"] for line in path.read_text().splitlines()] if path.exists() else []


def test_registering_twice_changes_nothing(released, runs_root):
    run = released("a")
    assert [register_release(run, promote=True) for _ in range(2)] == ["1", "1"]
    assert len(run.client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert _events(runs_root) == ["promoted"]


def test_version_tells_where_it_comes_from(released):
    run = released("a")
    register_release(run, promote=True)
    tags = run.client.get_model_version(MODEL, "1").tags
    assert tags["student_sha256"] == "student-1"
    assert tags["retained"] == "[0, 1, 2, 3, 4, 5]"
    assert {"git_sha", "data_sha256", "teacher_sha256", "dvc_lock_sha256", "seed", "preset"} <= tags.keys()
    assert tags["verdict"] == "ACCEPT"
    assert tags["metric.lm_speedup"] == "2"


def test_version_tells_family_and_licence_and_asks_for_what_the_family_needs(released):
    run = released("a")
    ModelOrigin(
        family="orpheus", codec="", teacher_source="owner/name", teacher_revision="0" * 40, teacher_sha256="t",
        license="Apache-2.0",
    ).write(Workspace(run.workspace).release / "model" / "slimtts.json")  # fmt: skip
    register_release(run, promote=False)
    tags = run.client.get_model_version(MODEL, "1").tags
    assert (tags["family"], tags["license"]) == ("orpheus", "Apache-2.0")
    (needed,) = (run.workspace.parent / "mlartifacts").rglob("requirements.txt")
    assert needed.read_text().startswith("slimtts[orpheus]==")


@pytest.mark.parametrize("decision", ["REGRESSION", "INCOMPLETE", "ANOMALOUS"])
def test_rejected_student_becomes_candidate_but_not_production(released, runs_root, decision):
    good, bad = released("good"), released("bad", seed=2)
    _judged(bad, decision)
    register_release(good, promote=True)
    assert register_release(bad, promote=True) == "2"
    aliases = good.client.get_registered_model(MODEL).aliases
    assert {name: str(version) for name, version in aliases.items()} == {"candidate": "2", "production": "1"}
    assert _events(runs_root) == ["promoted", "refused"]


def test_accepted_student_waits_when_promotion_is_not_wanted(released, runs_root):
    run = released("a")
    register_release(run, promote=False)
    assert production_version(run.client, MODEL) is None
    register_release(run, promote=True)
    assert production_version(run.client, MODEL) == "1"
    assert _events(runs_root) == ["promoted"]


def test_roll_back_returns_the_former_version_and_a_repeated_run_does_not_undo_it(released, runs_root):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    register_release(second, promote=True)
    assert production_version(first.client, MODEL) == "2"
    assert roll_back(first.client, runs_root, MODEL) == "1"
    register_release(second, promote=True)
    assert production_version(first.client, MODEL) == "1"
    assert _events(runs_root) == ["promoted", "promoted", "rolled_back"]
    with pytest.raises(InvalidInputError, match="nothing before it"):
        roll_back(first.client, runs_root, MODEL)


def test_kill_between_event_and_alias_is_mended_by_the_next_call(released, runs_root, monkeypatch):
    run = released("a")
    from mlflow import MlflowClient

    move = MlflowClient.set_registered_model_alias

    def killed(client, name, alias, version):
        if alias == "production":
            raise KeyboardInterrupt
        move(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", killed)
    with pytest.raises(KeyboardInterrupt):
        register_release(run, promote=True)
    monkeypatch.undo()
    register_release(run, promote=True)
    assert production_version(run.client, MODEL) == "1"
    assert _events(runs_root) == ["promoted"]


def test_deciding_again_by_a_changed_verdict(released, runs_root):
    run = released("a")
    _judged(run, "REGRESSION")
    register_release(run, promote=True)
    assert not decide(run.client, runs_root, MODEL, "1", Verdict(decision="INCOMPLETE", reasons=[]))
    assert decide(run.client, runs_root, MODEL, "1", Verdict(decision="ACCEPT", reasons=[]))
    assert production_version(run.client, MODEL) == "1"


def test_registered_model_speaks_base64_wav(released, monkeypatch):
    """MLflow loads the model from its code; the speaker is a toy, so that no weights are needed."""
    import mlflow

    run = released("a")
    register_release(run, promote=True)

    class ToySpeaker:
        sample_rate_hz = 16000

        @classmethod
        def load(cls, folder):
            assert (type(folder) is str) and (folder.endswith("model") or folder.endswith("student"))
            return cls()

        def encode_prompt(self, samples, sample_rate_hz):
            return [int(sample_rate_hz), len(samples)]

        def speak(self, text, voice=None, prompt_text="", prompt_codes=()):
            return np.full(len(text) + 10 * len(prompt_codes) + 100 * (voice == "slt"), 0.5, dtype=np.float32)

    monkeypatch.setitem(sys.modules, "slimtts.speech", type(sys)("slimtts.speech"))
    sys.modules["slimtts.speech"].Speaker = ToySpeaker
    monkeypatch.setattr(mlflow, "get_registry_uri", lambda: run.tracking_uri)
    mlflow.set_tracking_uri(run.tracking_uri)
    mlflow.set_registry_uri(run.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}@production")
    prompt = io.BytesIO()
    soundfile.write(prompt, np.zeros((800, 2), dtype=np.float32), 8000, format="WAV")
    rows = pd.DataFrame(
        {
            "text": ["hello", "hello", "hello"],
            "voice": [None, "slt", None],
            "prompt_audio_base64": [None, None, base64.b64encode(prompt.getvalue()).decode()],
        }
    )
    said = model.predict(rows)
    lengths = [len(soundfile.read(io.BytesIO(base64.b64decode(audio)))[0]) for audio in said["audio_base64"]]
    assert lengths == [5, 105, 25]
    assert list(said["sample_rate_hz"]) == [16000] * 3
    stored = [path.suffix for path in (run.workspace.parent / "mlartifacts").rglob("*") if path.is_file()]
    assert ".pkl" not in stored
