"""Importance: a useless layer ranks lowest, a vital one highest; nothing is left behind in the model."""

from itertools import pairwise

import pytest
import torch

from slimtts.decoding.generation import skipping_layers
from slimtts.decoding.teacher_forcing import collate, forced_sequence
from slimtts.params import DecodingParams
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.set_search import search_sets
from slimtts.scoring.shared_prefix import target_log_probabilities, with_layers
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


def search(teacher, beam_width, **how):
    return search_sets(teacher.model, teacher.layout, batches(teacher, (4, 2)), beam_width, **how)


def test_the_search_drops_the_identity_first_and_the_vital_layer_last(planted):
    levels = search(planted, beam_width=1)
    assert [len(level[0].retained) for level in levels] == [3, 2, 1]
    assert IDENTITY not in levels[0][0].retained
    assert levels[0][0].divergence == pytest.approx(0, abs=1e-6)
    assert all(VITAL in level[0].retained for level in levels)
    assert all(level == sorted(level, key=lambda one: one.divergence) for level in levels)


@torch.inference_mode()
def test_a_sets_score_is_the_divergence_of_the_model_without_the_others(teacher):
    (batch,) = batches(teacher)
    full = target_log_probabilities(teacher.model, teacher.layout, batch)
    for level in search(teacher, beam_width=2):
        for one in level:
            skip = torch.tensor([[i not in one.retained for i in range(4)]] * len(batch.ids))
            with skipping_layers(teacher.model, skip):
                without = target_log_probabilities(teacher.model, teacher.layout, batch)
            expected = torch.nn.functional.kl_div(without, full, log_target=True, reduction="sum") / len(full)
            assert one.divergence == pytest.approx(float(expected), rel=1e-4)


def test_a_wide_beam_sees_every_set_and_none_twice(teacher):
    levels = search(teacher, beam_width=99)
    assert [len(level) for level in levels] == [4, 6, 4]
    assert all(len({one.retained for one in level}) == len(level) for level in levels)


def test_a_narrow_beam_follows_its_best_sets_only(teacher):
    for level, following in pairwise(search(teacher, beam_width=1)):
        assert all(set(one.retained) < set(level[0].retained) for one in following)


def test_the_search_takes_measurements_that_others_made(planted):
    kept, told = {}, []

    def keep(jobs):
        kept.update({name: job() for name, job in jobs.items()})
        return kept

    def look_up(jobs):
        assert all(len(name) == len("cut-01-batch-000") for name in jobs)
        return {name: kept[name] for name in reversed(jobs)}

    whole = search(planted, beam_width=2, measured=keep)
    assert search(planted, beam_width=2, measured=look_up, after_level=told.append) == whole == told
    assert search(planted, beam_width=2) == whole


def test_batching_and_padding_change_no_set(planted):
    divided = search_sets(planted.model, planted.layout, batches(planted, (1, 2, 3)), 2)
    for level, other in zip(search(planted, beam_width=2), divided, strict=True):
        assert [one.divergence for one in level] == pytest.approx([one.divergence for one in other], rel=1e-3, abs=1e-6)


def test_the_model_is_whole_again_after_an_error(planted):
    with pytest.raises(RuntimeError), with_layers(planted.model, [2, 3]):
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


def test_a_stopped_layer_is_spoken_no_more_and_the_trials_of_the_others_stay(planted, tmp_path):
    looks = []

    def stopped(trials):
        looks.append(len(trials))
        return {0, 3} if len(looks) == 1 else {0, 1, 3}

    utterances, prompts = tiny_utterances(5), [Prompt("anna.", (3, 4))] * 5
    made = [
        leave_one_out(planted, utterances, prompts, GREEDY, repeat_codes(planted), tmp_path / name, group_size=1, **how)
        for name, how in (("all", {}), ("staged", {"stage_size": 2, "stopped": stopped}))
    ]
    assert looks == [2 * 5, 2 * 5 + 2 * 3]
    assert [(t.utterance_id, t.layer) for t in made[1] if t.layer != FULL_MODEL] == [
        *((f"u{u}", layer) for u in (0, 1) for layer in range(4)),
        *((f"u{u}", layer) for u in (2, 3) for layer in (1, 2)),
        ("u4", 2),
    ]
    assert set(made[1]) < set(made[0])
