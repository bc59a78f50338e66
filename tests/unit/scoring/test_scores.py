"""Importance: a useless layer ranks lowest, a vital one highest; nothing is left behind in the model."""

import pytest
import torch

from slimtts.decoding.teacher_forcing import collate, forced_sequence
from slimtts.params import DecodingParams
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.greedy_search import greedy_search, without_layers
from slimtts.scoring.wli import FULL_MODEL, leave_one_out
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_teacher, tiny_utterances

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=10, batch_rows=16, seed=1)
IDENTITY, VITAL = 2, 1


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Layer 2 adds nothing to its input; layer 1 adds far more than the others."""
    teacher = tiny_teacher(tmp_path_factory.mktemp("planted"), num_layers=4)
    layers = teacher.model.model.layers
    with torch.no_grad():
        for linear in (layers[IDENTITY].self_attn.o_proj, layers[IDENTITY].mlp.down_proj):
            linear.weight.zero_()
        for index in (0, 3):
            layers[index].self_attn.o_proj.weight.mul_(0.02)
            layers[index].mlp.down_proj.weight.mul_(0.02)
    return teacher


def batches(teacher, sizes=(6,)):
    utterances = tiny_utterances(6)
    sequences = [forced_sequence(teacher, u, Prompt("anna.", (1, 2))) for u in utterances]
    made, start = [], 0
    for size in sizes:
        made.append(collate(sequences[start : start + size], teacher.layout.pad_id))
        start += size
    return made


def repeat_codes(teacher):
    """A stand-in recogniser: the transcript is right only when the audio is what the full model says."""

    def transcribe(waves):
        return [" ".join(f"w{c}" for c in teacher.codec.encode(w[None])[0].tolist()) if len(w) else "" for w in waves]

    return transcribe


def test_block_influence_finds_the_planted_layers(planted):
    scores = block_influence(planted.model, batches(planted))
    assert scores[IDENTITY] == pytest.approx(0, abs=1e-6)
    assert max(range(4), key=scores.__getitem__) == VITAL


def test_block_influence_ignores_batching_and_padding(planted):
    assert block_influence(planted.model, batches(planted)) == pytest.approx(
        block_influence(planted.model, batches(planted, (1, 2, 3))), abs=1e-6
    )


def test_greedy_search_drops_the_identity_first_and_the_vital_layer_last(planted):
    cuts = greedy_search(planted.model, planted.layout, batches(planted), cuts=4 - 1)
    assert cuts[0].layer == IDENTITY
    assert cuts[0].divergence == pytest.approx(0, abs=1e-6)
    assert VITAL not in [cut.layer for cut in cuts]


def test_greedy_search_continues_after_finished_cuts(planted):
    whole = greedy_search(planted.model, planted.layout, batches(planted), cuts=3)
    rest = greedy_search(planted.model, planted.layout, batches(planted), cuts=3, finished=whole[:1])
    assert [c.layer for c in rest] == [c.layer for c in whole]


def test_the_model_is_whole_again_after_an_error(planted):
    with pytest.raises(RuntimeError), without_layers(planted.model, [0, 1]):
        assert len(planted.model.model.layers) == 2
        raise RuntimeError
    assert len(planted.model.model.layers) == planted.model.config.num_hidden_layers == 4


def wli(teacher, progress, utterances, transcribe=None):
    prompts = [Prompt("anna.", (3, 4))] * len(utterances)
    return leave_one_out(
        teacher, utterances, prompts, GREEDY, transcribe or repeat_codes(teacher), progress, group_size=2
    )


def test_wli_speaks_every_ablation_of_every_utterance(planted, tmp_path):
    trials = wli(planted, tmp_path, tiny_utterances(3))
    assert [(t.utterance_id, t.layer) for t in trials] == [
        (f"u{u}", layer) for u in range(3) for layer in (FULL_MODEL, 0, 1, 2, 3)
    ]
    said = {(t.utterance_id, t.layer): t.transcript for t in trials}
    assert all(said[f"u{u}", IDENTITY] == said[f"u{u}", FULL_MODEL] for u in range(3))
    assert any(said[f"u{u}", VITAL] != said[f"u{u}", FULL_MODEL] for u in range(3))


def test_wli_goes_on_after_an_interruption_without_speaking_twice(planted, tmp_path):
    class Interrupted(RuntimeError):
        pass

    heard = []

    def fails_on_second_group(waves):
        if len(heard) == 1:
            raise Interrupted
        heard.append(len(waves))
        return repeat_codes(planted)(waves)

    utterances = tiny_utterances(4)
    with pytest.raises(Interrupted):
        wli(planted, tmp_path / "a", utterances, fails_on_second_group)
    spoken_again = []

    def counting(waves):
        spoken_again.append(len(waves))
        return repeat_codes(planted)(waves)

    resumed = wli(planted, tmp_path / "a", utterances, counting)
    assert spoken_again == [2 * 5]
    assert resumed == wli(planted, tmp_path / "b", utterances)
