"""Which files are drawn, from which results, and that a missing result is no error."""

import json
from dataclasses import asdict

from slimtts.plots.drawing import draw_run, draw_stage, draw_students
from slimtts.results import AgreementBin, AgreementReport, LayerScore, LayerScores, SystemAgreement
from slimtts.workspace import Workspace
from tests.unit.plots.made import around, made_run


def finished_workspace(root, run):
    """The files of a run that pictures are made from."""
    workspace = Workspace(root)
    layers = [LayerScore(layer=i, importance=float(i)) for i in range(12)]
    LayerScores(
        method="search", num_layers=12, utterances=4, reference_wer=None, layers=layers, drop_order=list(range(12)),
        data_sha256="d", teacher_sha256="t",
    ).write(workspace.scores / "scores.json")  # fmt: skip
    run.plan.write(workspace.pruned / "plan.json")
    workspace.student.mkdir()
    (workspace.student / "student.jsonl").write_text('{"name": "student", "step": 0, "loss": 1.0, "latent": 0.5}\n')
    run.report.write(workspace.evaluation / "evaluation.json")
    bins = [AgreementBin(first=0, last=3, utterances=2, top1=around(0.9), kl_nats=around(0.2))]
    student = SystemAgreement(top1=around(0.9), kl_nats=around(0.2), bins=bins)
    AgreementReport(utterances=2, systems={"student": student}).write(workspace.evaluation / "agreement.json")
    rows = [{"system": name, "text": "x"} | asdict(s) for name, said in run.sentences.items() for s in said]
    (workspace.evaluation / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace


def test_every_finished_stage_is_drawn(tmp_path):
    workspace = finished_workspace(tmp_path / "run", made_run("run", 6, [0, 1]))
    drawn = draw_run(workspace, tmp_path / "plots")
    assert [path.name for path in drawn] == ["importance.png", "training.png", "durations.png", "agreement.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_what_a_stage_did_not_leave_is_not_drawn(tmp_path):
    assert draw_run(Workspace(tmp_path), tmp_path / "plots") == []
    assert draw_stage("register_model", Workspace(tmp_path), tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


def test_students_of_several_runs_are_drawn_together(tmp_path):
    drawn = draw_students([made_run("a", 6, [0, 1]), made_run("b", 4, [1, 1])], tmp_path)
    assert [path.name for path in drawn] == ["wer_against_depth.png", "wer_against_cost.png"]
    assert all(path.stat().st_size > 5000 for path in drawn)
