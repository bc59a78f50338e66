"""What a run tells MLflow for comparisons, once however often it is recorded, and the way back from there."""

import json

import pytest
import yaml

from slimtts.cli import main as slimtts
from slimtts.results import DistillReport, SplitSummary, SubsetReport, TrainingReport
from tasks.comparison import main
from tasks.experiment_view import VIEW_TAG
from tasks.plots import comparable_runs, stage_plots
from tasks.tracking import log_stage, open_run
from tasks.workspace import CHECKOUT
from tests.unit.plots.made import made_run
from tests.unit.plots.test_drawing import finished_workspace

RECORDED = ("subset_data", "score_layers", "prune_layers", "distill_student", "evaluate_student")
GOOD, BAD = [0, 1] * 20, [3, 2] * 20


def finished_run(runs_root, name, layers, errors, steps=60, **report):
    """A workspace after its evaluation, with parameters of its own."""
    workspace = finished_workspace(runs_root / name, made_run(name, layers, errors, **report))
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    params["distill_student"]["steps"] = steps
    workspace.params.write_text(yaml.safe_dump(params))
    split = SplitSummary(utterances=9, hours=0.1, words=50)
    SubsetReport(
        strategy="coverage", teacher_hours=10, share=0.04, word_coverage=1.0, splits={"train": split, "test": split},
        dropped={}, data_sha256="d" * 64,
    ).write(workspace.data / "report.json")  # fmt: skip
    training = TrainingReport(
        name="student", steps=steps, tokens=1, wall_s=1, final_loss=1, weights_sha256="of tensors"
    )
    report = DistillReport(preset="default", student=training, control=None, device="cpu")
    report.write(workspace.student / "report.json")
    lock = {"stages": {stage: {"outs": [stage, name, layers]} for stage in RECORDED}}
    (workspace.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    return workspace


def recorded(workspace):
    run = open_run(workspace.root, "demo")
    for stage in RECORDED:
        log_stage(run, stage)
    return run


def paths(run, folder):
    return [item.path for item in run.client.list_artifacts(run.run_id, folder)]


def test_a_run_shows_its_headline_data_student_and_pictures(runs_root):
    run = recorded(finished_run(runs_root, "half", 6, GOOD, weights_sha256={"student": "w-half"}))
    found = run.client.get_run(run.run_id)
    headline = {key: value for key, value in found.data.metrics.items() if key.startswith("compare/")}
    expected = {"layers": 6, "depth_percent": 50, "wer_percent": 5, "wer_gap_points": 5, "wer_gap_points.high": 6}
    expected |= {"lm_rtf": 0.1, "lm_speedup": 2, "memory_mb": 500, "agreement_percent": 90, "parameters_percent": 50}
    assert {key: headline[f"compare/{key}"] for key in expected} == pytest.approx(expected)
    assert found.data.tags["depth"] == "6 of 12"
    used = {(d.dataset.name, d.dataset.digest, d.tags[0].value) for d in found.inputs.dataset_inputs}
    assert used == {
        ("train split", "d" * 32, "training"), ("test split", "d" * 32, "testing"),
        ("test sentences", "t" * 32, "testing"),
    }  # fmt: skip
    (output,) = found.outputs.model_outputs
    student = run.client.get_logged_model(output.model_id)
    assert (student.name, student.status, student.tags["student_sha256"]) == ("half", "READY", "w-half")
    assert found.data.tags["student_sha256"] == "w-half", "what the evaluation and the version call it"
    assert (student.params["layers"], student.params["steps"]) == ("6 of 12", "60")
    assert {m.key: m.value for m in student.metrics} == pytest.approx(headline)
    assert {(m.dataset_name, m.dataset_digest) for m in student.metrics} == {("test sentences", "t" * 32)}
    assert paths(run, "plots") == [
        f"plots/{name}.png"
        for name in ("agreement", "durations", "importance", "training", "wer_against_cost", "wer_against_depth")
    ]
    assert "evaluation/utterances.jsonl" in paths(run, "evaluation")
    assert "params.yaml" in paths(run, "")


def test_recording_again_or_after_a_kill_leaves_one_of_each(runs_root, monkeypatch):
    workspace = finished_run(runs_root, "half", 6, GOOD)
    run = recorded(workspace)
    with monkeypatch.context() as until_killed:
        until_killed.setattr("mlflow.MlflowClient.log_batch", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        (workspace.root / "dvc.lock").write_text((workspace.root / "dvc.lock").read_text().replace("half", "again"))
        with pytest.raises(KeyboardInterrupt):
            log_stage(run, "evaluate_student")
    recorded(workspace)
    found = run.client.get_run(run.run_id)
    assert len(found.outputs.model_outputs) == 1
    assert len(run.client.search_logged_models([found.info.experiment_id])) == 1
    assert len(found.inputs.dataset_inputs) == 3


def test_only_runs_that_were_judged_alike_are_drawn_together(runs_root, caplog):
    one = finished_run(runs_root, "one", 6, GOOD)
    finished_run(runs_root, "two", 4, BAD)
    finished_run(runs_root, "strange", 4, BAD, asr="another")
    (runs_root / "damaged" / "evaluation").mkdir(parents=True)
    (runs_root / "damaged" / "evaluation" / "evaluation.json").write_text("{")
    with caplog.at_level("INFO"):
        from slimtts.comparison.runs import read_run

        found = comparable_runs(one.root, read_run(one.root, with_sentences=False))
    assert [run.name for run in found] == ["two"]
    assert sum("is not drawn beside one" in message for message in caplog.messages) == 2
    assert [path.name for path in stage_plots("evaluate_student", one)][-1] == "wer_against_cost.png"


def test_runs_are_compared_by_mlflow_id_name_or_folder(runs_root, capsys):
    kept = finished_run(runs_root, "kept", 6, GOOD, steps=60)
    gone = finished_run(runs_root, "gone", 6, BAD, steps=10)
    run_id = recorded(gone).run_id
    gone.root.rename(runs_root / "elsewhere")
    (runs_root / "elsewhere" / "evaluation" / "evaluation.json").unlink()
    for name in ("gone", run_id):
        assert main([name, "kept", "--json", "--runs", str(runs_root)]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert [(s["run"], s["standing"]) for s in shown["students"]] == [
            ("kept", "best"), ("gone", "worse than the best"),
        ]  # fmt: skip
        assert shown["differing_knobs"] == {"distill_student.steps": {"kept": "60", "gone": "10"}}
    assert main(["gone", str(kept.root), "--plots", str(runs_root / "plots"), "--runs", str(runs_root)]) == 0
    assert "**best**" in capsys.readouterr().out
    assert (runs_root / "plots" / "kept" / "training.png").is_file()


def test_unknown_runs_and_an_empty_store_are_one_line(runs_root, tmp_path, capsys):
    recorded(finished_run(runs_root, "half", 6, GOOD))
    for name in ("nobody", "f" * 32, "x' OR '1'='1"):
        assert main([name, "--runs", str(runs_root)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["nobody", "--runs", str(tmp_path / "nowhere")]) == 2
    assert "a store that runs were recorded in" in capsys.readouterr().err


def test_a_workspace_tag_that_is_a_path_is_refused(runs_root, capsys):
    run = recorded(finished_run(runs_root, "half", 6, GOOD))
    run.client.set_tag(run.run_id, "workspace", "../../outside")
    assert main([run.run_id, "--runs", str(runs_root)]) == 2
    assert "'../../outside'" in capsys.readouterr().err


def test_a_run_that_did_not_record_its_sentences_is_refused(runs_root, capsys):
    workspace = finished_run(runs_root, "old", 6, GOOD)
    (workspace.evaluation / "utterances.jsonl").unlink()
    run = recorded(workspace)
    assert main([run.run_id, "--runs", str(runs_root)]) == 2
    assert "no evaluation/utterances.jsonl" in capsys.readouterr().err


def test_folders_are_compared_by_the_command_without_mlflow(runs_root, capsys, monkeypatch):
    workspaces = [finished_run(runs_root, name, 6, errors) for name, errors in (("good", GOOD), ("bad", BAD))]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert slimtts(["compare", "good", str(workspaces[1].root), "--runs", str(runs_root)]) == 0
    assert "| good - bad |" in capsys.readouterr().out
    assert slimtts(["compare", "good", "--runs", str(runs_root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tests"] == []


def test_two_folders_of_one_name_keep_the_paths_that_were_given(runs_root, capsys):
    one, two = (finished_run(runs_root / part, "demo", 6, GOOD) for part in ("a", "b"))
    assert slimtts(["compare", str(one.root), str(two.root), "--plots", str(runs_root / "plots")]) == 0
    assert str(one.root) in capsys.readouterr().out
    assert len(list((runs_root / "plots").glob("*/training.png"))) == 2


def test_what_is_no_folder_is_handed_to_the_checkout(runs_root, monkeypatch):
    from slimtts.commands import compare

    handed = []
    monkeypatch.setattr(compare, "become", handed.append)
    folder = finished_run(runs_root, "good", 6, GOOD).root
    assert slimtts(["compare", "good", "other", "--json", "--runs", str(runs_root)]) == 0
    (command,) = handed
    assert command == [
        "tasks.comparison",
        "--json",
        f"--runs={runs_root.resolve()}",
        "--",
        str(folder.resolve()),
        "other",
    ]


def test_the_table_is_the_runs_description_unless_somebody_wrote_one(runs_root):
    workspace = finished_run(runs_root, "half", 6, GOOD)
    (workspace.evaluation / "table.md").write_text("| system |\n")
    run = recorded(workspace)
    assert run.client.get_run(run.run_id).data.tags["mlflow.note.content"] == "| system |\n"
    run.client.set_tag(run.run_id, "mlflow.note.content", "ask Anna")
    (workspace.root / "dvc.lock").write_text((workspace.root / "dvc.lock").read_text().replace("half", "again"))
    recorded(workspace)
    assert run.client.get_run(run.run_id).data.tags["mlflow.note.content"] == "ask Anna"


def test_the_experiment_keeps_a_view_with_columns_and_charts(runs_root):
    run = recorded(finished_run(runs_root, "half", 6, GOOD))
    found = run.client.get_run(run.run_id)
    view = json.loads(run.client.get_experiment(found.info.experiment_id).tags[VIEW_TAG])
    named = {
        "metrics": found.data.metrics, "tags": {**found.data.tags, "verdict": ""}, "params": found.data.params
    }  # fmt: skip
    for column in view["selectedColumns"]:
        kind, name = column.split(".", 1)
        assert name.strip("`") in named[kind], column
    for chart in view["compareRunCharts"]:
        keys = [chart["metricKey"]] if chart["type"] == "BAR" else [chart["xaxis"]["key"], chart["yaxis"]["key"]]
        assert set(keys) <= found.data.metrics.keys()
        assert chart["metricSectionId"] == view["compareRunSections"][0]["uuid"]
    assert len(run.client.get_experiment(found.info.experiment_id).tags[VIEW_TAG]) < 5000, "what MLflow keeps of a tag"
