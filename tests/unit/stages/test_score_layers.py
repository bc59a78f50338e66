"""WLI from trials: failures are full errors, endless speech is capped for the ranking and raw beside it."""

from pathlib import Path

from slimtts.params import load_params
from slimtts.plots.importance import plot_scores
from slimtts.results import LayerScores
from slimtts.scoring.wli import FULL_MODEL, Trial
from slimtts.stages.score_layers import EarlyStop, wer_scores

PARAMS = load_params(Path(__file__).parents[3] / "params.yaml")
TEXT = "the green tiger."


def trials(layer, transcripts, ended=True):
    return [Trial(f"u{i}", layer, TEXT, heard, ended) for i, heard in enumerate(transcripts)]


def test_importance_is_the_capped_wer_without_the_layer():
    endless = "a b c d e f g h i"
    made = [
        *trials(FULL_MODEL, ["the green tiger", "the green tiger"]),
        *trials(0, ["", ""]),
        *trials(1, ["the green tiger", "the green lion"]),
        *trials(2, [endless, endless], ended=False),
    ]
    reference, scores = wer_scores(made, PARAMS, 3)
    assert reference.value == 0
    assert [round(s.importance, 3) for s in scores] == [1.0, 0.167, 1.0]
    assert [round(s.wer_raw, 3) for s in scores] == [1.0, 0.167, 3.0]
    assert [s.no_end_rate for s in scores] == [0.0, 0.0, 1.0]
    assert scores[1].wer_capped.low <= scores[1].importance <= scores[1].wer_capped.high


def test_order_of_trials_changes_nothing():
    made = [*trials(FULL_MODEL, ["x"]), *trials(0, ["the green lion", ""]), *trials(1, ["", TEXT])]
    assert wer_scores(made[::-1], PARAMS, 2)[1][0].importance == wer_scores(made, PARAMS, 2)[1][0].importance


def test_scores_with_and_without_intervals_are_drawn(tmp_path):
    made = [*trials(FULL_MODEL, ["x"]), *trials(0, ["", TEXT]), *trials(1, ["", ""])]
    reference, layers = wer_scores(made, PARAMS, 2)
    common = {"num_layers": 2, "utterances": 2, "drop_order": [0, 1], "data_sha256": "d", "teacher_sha256": "t"}
    plot_scores(LayerScores(method="wli", reference_wer=reference, layers=layers, **common), tmp_path / "wli.png")
    bare = [layer.model_copy(update={"wer_capped": None}) for layer in layers]
    plot_scores(LayerScores(method="search", reference_wer=None, layers=bare, **common), tmp_path / "search.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("wli", "search"))


def early_stop(risk, utterances=32):
    knobs = PARAMS.score_layers.model_copy(update={"early_stop_risk": risk})
    return EarlyStop(PARAMS.model_copy(update={"score_layers": knobs}), 3, utterances)


def sixteen_of(*transcripts):
    return [trial for layer, heard in enumerate(transcripts) for trial in trials(layer, [heard] * 16)]


def test_a_layer_is_settled_by_arithmetic_or_at_a_risk():
    made = sixteen_of("", TEXT, "the green lion")
    assert early_stop(0.0)(made) == {}
    assert early_stop(0.0, utterances=24)(made) == {0: 2}
    assert early_stop(0.4)(made) == {0: 2, 1: 0, 2: 1}
    assert early_stop(None, utterances=17)(made) == {}


def test_a_settled_layer_stays_settled_with_its_rank():
    stop = early_stop(0.0, utterances=24)
    assert stop(sixteen_of("", TEXT, "the green lion")) == {0: 2}
    more = [*sixteen_of("", TEXT, "the green lion"), *trials(1, ["", "", ""]), *trials(2, ["", "", ""])]
    assert stop(more)[0] == 2


def test_looks_are_few_and_none_without_a_risk():
    sizes = [early_stop(0.0, utterances).stage_size for utterances in (8, 64, 128, 500, 1024)]
    assert sizes == [16, 16, 16, 56, 128]
    assert early_stop(None).stage_size is None


def test_scores_tell_how_many_utterances_are_behind_each_layer():
    made = [*trials(FULL_MODEL, ["x", "x"]), *trials(0, [""]), *trials(1, ["", TEXT])]
    assert [layer.utterances for layer in wer_scores(made, PARAMS, 2)[1]] == [1, 2]
