import json
import logging

import pytest

from slimtts.errors import SlimttsError
from tasks.shared_outputs import take_over
from tasks.stage_runner import run_stage, stale_stages
from tasks.tracking import mlflow_client, remembered_run_id, tracking_uri
from tasks.workspace import prepare_workspace

SCORED = ("subset_data", "score_layers")
SEEDS = (("same", 1), ("other", 2))
logger = logging.getLogger("test")


@pytest.fixture
def sweep(prefect_server, toy_checkout, runs_root):
    from flows.sweep_depths import sweep_depths

    def run(depths, *overrides):
        return sweep_depths("sweep", depths, "demo", overrides, runs_root, toy_checkout)

    return run


def test_scores_are_made_once_and_every_depth_is_a_run_below_the_sweep(sweep, started, runs_root, monkeypatch):
    scored = sweep([6, 3])
    assert sorted(started()) == sorted(
        ["subset_data", "score_layers"] + 2 * ["prune_layers", "distill_student", "evaluate_student", "register_model"]
    )
    client = mlflow_client(tracking_uri(runs_root))
    parent = client.get_run(remembered_run_id(scored))
    for depth in (3, 6):
        workspace = runs_root / f"sweep-keep-{depth}"
        assert len(json.loads((workspace / "pruned" / "plan.json").read_text())["retained"]) == depth
        tags = client.get_run(remembered_run_id(workspace)).data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert parent.data.metrics[f"keep_{depth:02d}.student.wer_corpus"] == 0.05
    rows = (scored / "comparison.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 3 of 12", "| 6 of 12"]
    assert parent.data.tags["mlflow.note.content"].splitlines() == rows
    assert "production" not in client.get_registered_model("slimtts-nano").aliases, "a sweep promotes nothing"

    monkeypatch.setenv("TOY_FAIL", "prune_layers")
    with pytest.raises(SlimttsError, match=r"1 of 3 depths failed: 4 layers: .*next: mend the cause"):
        sweep([6, 3, 4])
    assert started() == ["prune_layers"], "finished depths have nothing to do, and nothing is scored again"
    assert (scored / "comparison.md").read_text().splitlines()[-1].startswith("| 4 | failed |")


def test_what_does_not_fit_is_made_again(toy_workspace, toy_checkout, started):
    for stage in SCORED:
        run_stage(stage, toy_workspace, 60, logger)
    runs = toy_workspace.parent
    same, other = (prepare_workspace(n, "demo", [f"score_layers.seed={s}"], runs, toy_checkout) for n, s in SEEDS)
    assert take_over(toy_workspace, same, SCORED, logger)
    assert not take_over(toy_workspace, same, SCORED, logger), "once is enough"
    take_over(toy_workspace, other, SCORED, logger)
    assert {*stale_stages(same)} & {*SCORED} == set()
    assert {*stale_stages(other)} & {*SCORED} == {"score_layers"}
    (other / "progress" / "score_layers" / "done").write_text("2")
    assert (toy_workspace / "progress" / "score_layers" / "done").read_text() == "1", "a copy, not a link"
