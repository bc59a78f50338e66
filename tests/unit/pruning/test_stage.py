"""The stage: what it reads, what it writes, and that the options meet."""

from pathlib import Path

import pytest
import torch

from slimtts.data.manifest import Utterance, write_utterances
from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from slimtts.pruning import budget
from slimtts.results import LayerScores, PrunePlan
from slimtts.stages import prune_layers as stage
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.tiny import tiny_utterances
from slimtts.workspace import Workspace

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml")
DROP_ORDER = [2, 1, 3]


@pytest.fixture
def run(teacher, monkeypatch, tmp_path):
    """Runs the stage on the tiny teacher with changed knobs."""
    monkeypatch.setattr(stage, "load_teacher", lambda _: teacher)
    workspace = Workspace(tmp_path)
    workspace.scores.mkdir()
    LayerScores(
        method="search", num_layers=4, utterances=1, reference_wer=None, layers=[], drop_order=DROP_ORDER,
        data_sha256="d", teacher_sha256="t",
    ).write(workspace.scores / "scores.json")  # fmt: skip

    def run_with(with_data=True, **knobs):
        if with_data and not workspace.data.exists():
            workspace.data.mkdir()
            write_utterances(workspace.data / "train.jsonl", tiny_utterances(12))
        changed = PARAMS.prune_layers.model_copy(update={"keep_layers": 2, **knobs})
        plan = stage.prune_layers(PARAMS.model_copy(update={"prune_layers": changed}), workspace)
        assert PrunePlan.read(workspace.pruned / "plan.json") == plan
        return plan, load_language_model(workspace.pruned / "model")

    return run_with


def utterance(name, voice):
    return Utterance(id=name, text=f"{name}.", voice=voice, codes=(1, 2), duration_s=0.1)


def test_calibration_sentences_follow_another_of_their_voice():
    rows = [
        utterance("a1", "a"),
        utterance("b1", "b"),
        utterance("a2", "a"),
        utterance("c1", "c"),
        utterance("a3", "a"),
    ]
    tasks = stage.calibration_tasks([*rows, utterance("b2", "b")], 5)
    assert [(t.utterance.id, t.prompt.text) for t in tasks] == [
        ("a1", "a2."), ("b1", "b2."), ("a2", "a3."), ("c1", ""), ("a3", "a1."),
    ]  # fmt: skip
    assert tasks[0].prompt.codes == (1, 2) and tasks[3].prompt.codes == ()


def test_a_plain_copy_reads_no_data_and_measures_nothing(run, teacher):
    plan, student = run(with_data=False)
    assert (plan.retained, plan.dropped, plan.latency_share) == ([0, 3], [1, 2], None)
    for ours, theirs in ((0, 0), (1, 3)):
        expected = teacher.model.model.layers[theirs].state_dict()
        assert all(
            torch.equal(tensor.half(), expected[name].half())
            for name, tensor in student.model.layers[ours].state_dict().items()
        )


def test_an_explicit_list_wins_over_scores_and_limits(run):
    plan, _ = run(with_data=False, retained=(1, 2), max_parameter_share=0.01)
    assert plan.retained == [1, 2]


def test_a_parameter_limit_cuts_deeper_than_asked(run, teacher):
    each = sum(p.numel() for p in teacher.model.model.layers[0].parameters())
    total = teacher.model.num_parameters()
    plan, _ = run(with_data=False, keep_layers=3, max_parameter_share=(total - 3 * each) / total)
    assert plan.retained == [0]
    assert plan.student_parameters == total - 3 * each


def test_a_latency_limit_is_met_by_the_estimate_in_the_plan(run, monkeypatch, caplog):
    monkeypatch.setattr(budget, "seconds_a_token", lambda model, _: 2 + 2 * model.config.num_hidden_layers)
    with caplog.at_level("INFO"):
        plan, _ = run(with_data=False, keep_layers=4, max_latency_share=0.7)
    assert plan.retained == [0, 3] and plan.latency_share == pytest.approx(0.6)
    assert "kept 2/4 layers, dropped [1, 2]; " in caplog.text and "about 0.60 of the seconds a token" in caplog.text


def test_a_narrow_ffn_leaves_room_for_more_layers(run):
    wide, _ = run(keep_layers=4, max_parameter_share=0.8)
    narrow, _ = run(keep_layers=4, max_parameter_share=0.8, ffn_share=0.5)
    assert len(narrow.retained) > len(wide.retained)


def test_an_impossible_limit_leaves_the_former_plan(run, tmp_path):
    former, _ = run(with_data=False)
    with pytest.raises(InvalidInputError, match=r"^prune_layers.max_parameter_share: observed 0.01; allowed: at least"):
        run(with_data=False, max_parameter_share=0.01)
    assert PrunePlan.read(tmp_path / "pruned" / "plan.json") == former


def test_all_options_together_give_one_standard_checkpoint(run, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    plan, student = run(ffn_share=0.5, calibration_utterances=8)
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (2, 24)
    assert plan.student_parameters == student.num_parameters()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())
    again, same = run(ffn_share=0.5, calibration_utterances=8)
    assert again == plan
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_layers_that_only_their_numbers_chose_are_in_the_plan(run, tmp_path):
    assert run()[0].tied_layers == []
    path = tmp_path / "scores" / "scores.json"
    LayerScores.read(path).model_copy(update={"tied_layers": [[1, 3]]}).write(path)
    plan, _ = run()
    assert (plan.dropped, plan.tied_layers) == ([1, 2], [1, 3])
    assert run(retained=(0, 3))[0].tied_layers == [], "a person chose"
    assert run(keep_layers=1)[0].tied_layers == [], "both go"
