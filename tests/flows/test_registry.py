"""Versions on a real MLflow store; the results come from the toy stages, without DVC."""

import base64
import io
import shutil
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from slimtts.results import DistillReport, EvaluationReport, ModelOrigin, Release
from slimtts.storage import folder_sha256
from slimtts.workspace import Workspace
from tasks.fetch_model import MODEL_FILES
from tasks.registry import register_release
from tasks.tracking import log_stage
from tests.flows.toy_release import (
    MODEL,
    events,
    judged,
    make_anomalous,
    make_incomplete,
    make_regression,
    production,
    promotions,
    toy_release,
)


@pytest.fixture
def released(runs_root, monkeypatch):
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    return partial(toy_release, runs_root)


def test_registering_twice_changes_nothing(released):
    run = released("a")
    assert [register_release(run, promote=True) for _ in range(2)] == ["1", "1"]
    assert len(run.client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert events(run) == ["promoted"]


def test_version_tells_where_it_comes_from(released):
    run = released("a")
    register_release(run, promote=True)
    tags = run.client.get_model_version(MODEL, "1").tags
    assert tags["student_sha256"] == "student-1"
    assert tags["retained"] == "[0, 1, 2, 3, 4, 5]"
    assert {"git_sha", "data_sha256", "teacher_sha256", "dvc_revision", "seed", "preset"} <= tags.keys()
    assert (tags["verdict"], tags["last_action"]) == ("ACCEPT", "promoted")
    assert tags["metric.lm_speedup"] == "2"


def test_a_search_by_the_versions_hash_finds_run_and_logged_model(released):
    run = released("a")
    training = DistillReport.read(Workspace(run.workspace).student / "report.json")
    other = training.student.model_copy(update={"weights_sha256": "of the tensors, not of the file"})
    training.model_copy(update={"student": other}).write(Workspace(run.workspace).student / "report.json")
    stages = ("distill_student", "evaluate_student", "register_model")
    (run.workspace / "dvc.lock").write_text(yaml.safe_dump({"stages": {stage: {} for stage in stages}}))
    for stage in stages:
        log_stage(run, stage)
    register_release(run, promote=True)
    sha256 = run.client.get_model_version(MODEL, "1").tags["student_sha256"]
    experiment = run.client.get_run(run.run_id).info.experiment_id
    runs = run.client.search_runs([experiment], f"tags.student_sha256 = '{sha256}'")
    models = run.client.search_logged_models([experiment], f"tags.student_sha256 = '{sha256}'")
    assert [found.info.run_id for found in runs] == [run.run_id]
    assert [model.source_run_id for model in models] == [run.run_id]
    evaluation = EvaluationReport.read(Workspace(run.workspace).evaluation / "evaluation.json")
    assert evaluation.weights_sha256["student"] == sha256 == "student-1"


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


@pytest.mark.parametrize(
    ("spoil", "decision"),
    [(make_regression, "REGRESSION"), (make_incomplete, "INCOMPLETE"), (make_anomalous, "ANOMALOUS")],
)
def test_rejected_student_becomes_candidate_but_not_production(released, spoil, decision):
    good, bad = released("good"), released("bad", seed=2)
    assert spoil(bad) == decision
    register_release(good, promote=True)
    assert register_release(bad, promote=True) == "2"
    aliases = good.client.get_registered_model(MODEL).aliases
    assert {name: str(version) for name, version in aliases.items()} == {"candidate": "2", "production": "1"}
    refused = promotions(good).log.read().events[-1]
    assert (refused.action, refused.decision, refused.former_version) == ("refused", decision, "1")
    assert refused.reasons
    assert good.client.get_model_version(MODEL, "2").tags["verdict"] == decision


def test_accepted_student_waits_when_promotion_is_not_wanted(released):
    run = released("a")
    register_release(run, promote=False)
    assert production(run) is None
    assert run.client.get_model_version(MODEL, "1").tags["verdict"] == "ACCEPT"
    register_release(run, promote=True)
    assert production(run) == "1"
    assert events(run) == ["promoted"]


def test_a_model_that_was_deleted_is_registered_again(released):
    run = released("a")
    register_release(run, promote=True)
    run.client.delete_registered_model(MODEL)
    assert register_release(run, promote=True) == "1"
    assert (events(run), production(run)) == (["promoted"], "1")
    run.client.delete_model_version(MODEL, "1")
    assert register_release(run, promote=True) == "2", "numbers are not used twice"
    assert production(run) == "2"


def test_a_version_whose_files_are_gone_gets_them_again(released, caplog):
    run = released("a")
    register_release(run, promote=True)
    [weights] = (run.workspace.parent / "mlartifacts").rglob("weights")
    shutil.rmtree(weights.parents[2])
    model = Workspace(run.workspace).release / "model"
    (model / "README.md").write_text("another card")
    assert register_release(run, promote=True) == "1"
    assert "slimtts-nano version 1 has lost its files; its student is uploaded again" in caplog.text
    assert weights.read_text() == "1"
    assert run.client.get_model_version(MODEL, "1").tags[MODEL_FILES] == folder_sha256(model)
    caplog.clear()
    assert register_release(run, promote=True) == "1"
    assert "lost its files" not in caplog.text


def test_two_students_of_one_run_keep_their_own_weights(released):
    run = released("a")
    register_release(run, promote=True)
    workspace = Workspace(run.workspace)
    release = Release.read(workspace.release / "release.json")
    other = release.lineage.model_copy(update={"student_sha256": "another"})
    release.model_copy(update={"lineage": other}).write(workspace.release / "release.json")
    (workspace.release / "model" / "weights").write_text("another")
    judged(run, weights_sha256={"teacher": "teacher", "student": "another"})
    assert register_release(run, promote=True) == "2"
    sources = [run.client.get_model_version(MODEL, number).source for number in "12"]
    assert sources[0] != sources[1]
    weights = sorted((run.workspace.parent / "mlartifacts").rglob("weights"))
    assert sorted(path.read_text() for path in weights) == ["1", "another"]


def test_registered_model_speaks_base64_wav(request, released, monkeypatch):
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
    # MLflow keeps both for the whole process, in a variable and in the environment: the next test has its own.
    request.addfinalizer(lambda: (mlflow.set_tracking_uri(None), mlflow.set_registry_uri(None)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.tracking_uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", run.tracking_uri)
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
