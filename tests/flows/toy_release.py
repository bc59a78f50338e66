"""A finished release of a toy student in a workspace, and what is asked of its registry in tests."""

import importlib.util
from pathlib import Path

import yaml

from slimtts.params import load_params
from slimtts.promotion import judge
from slimtts.results import EvaluationReport, Release
from slimtts.workspace import STAGES, Workspace
from tasks.evidence import Evidence
from tasks.promotion import Promotions, Request
from tasks.team_gate import GATE_FILE, team_gate
from tasks.tracking import open_run
from tasks.workspace import compose_params

MODEL = "slimtts-nano"
ANN = Request("ann@box", "because")


def toy_release(runs_root, name, seed=1):
    """Makes the workspace of the student with this seed, and opens its run."""
    root = runs_root / name
    params = compose_params("demo", [f"distill_student.seed={seed}"]).model_dump()
    workspace = Workspace(root)
    for folder in (workspace.data, workspace.scores, workspace.pruned, workspace.evaluation):
        folder.mkdir(parents=True)
    workspace.params.write_text(yaml.safe_dump(params))
    for file in ("dvc.yaml", "dvc.lock"):
        (root / file).write_text("stages: {}\n")
    spec = importlib.util.spec_from_file_location("toy_stage", Path(__file__).with_name("toy_stage.py"))
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    for stage in STAGES:
        getattr(toy, stage)(params, workspace)
    return open_run(root, "demo")


def judged(run, **changes):
    """The same release, from an evaluation of its own: with these changes, and the verdict that they deserve."""
    workspace = Workspace(run.workspace)
    path = workspace.evaluation / "evaluation.json"
    report = EvaluationReport.read(path).model_copy(update=changes)
    report.write(path)
    release = Release.read(workspace.release / "release.json")
    verdict = judge(report, load_params(workspace.params).register_model, release.lineage)
    release.model_copy(update={"verdict": verdict}).write(workspace.release / "release.json")
    return verdict.decision


def set_gate(run, **knobs):
    path = run.workspace / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["register_model"] |= knobs
    path.write_text(yaml.safe_dump(params))


def promotions(run):
    return Promotions(run.client, run.workspace.parent, MODEL)


def events(run):
    return [event.action for event in promotions(run).log.read().events]


def production(run):
    return promotions(run).log.read().production


def decide(run, version, request=ANN, **knobs):
    """As promote_model does, by the team's gate with these changes, which can tighten it."""
    gate = team_gate().model_copy(update=knobs)
    return promotions(run).decide(version, Evidence.of_version(run.client, MODEL, version), gate, request)


def set_team_gate(monkeypatch, tmp_path, **knobs):
    """As whoever deploys does."""
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump(knobs))
    monkeypatch.setenv(GATE_FILE, str(path))


def slow(report):
    """A student that is no faster than its teacher."""
    systems = dict(report.systems)
    systems["student"] = systems["student"].model_copy(update={"speed": systems["teacher"].speed})
    return systems


def evaluation(run):
    return EvaluationReport.read(Workspace(run.workspace).evaluation / "evaluation.json")


def make_regression(run):
    return judged(run, systems=slow(evaluation(run)))


def make_incomplete(run):
    return judged(run, utterances=3)


def make_anomalous(run):
    return judged(run, reference_wer=0.09)
