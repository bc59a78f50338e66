"""Sets of layers that share what they begin with cost less, and give what each would give alone."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from slimtts.decoding.teacher_forcing import collate, forced_sequence, hidden_states
from slimtts.scoring import shared_prefix
from slimtts.scoring.shared_prefix import (
    divergence_sums,
    expected_speech,
    hidden_states_of_sets,
    target_log_probabilities,
    with_layers,
)
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_model, tiny_utterances

PAIRS = list(itertools.combinations(range(4), 2))
MIXED = [(1, 3), (0,), (0, 1, 2, 3), (0, 1, 3), (2, 3), (3,), (0, 1), (1, 2, 3)]


@pytest.fixture(scope="module")
def batch(teacher):
    sequences = [forced_sequence(teacher, u, Prompt("anna.", (1, 2))) for u in tiny_utterances(5)]
    return collate(sequences, teacher.layout.pad_id)


def dense(model, layout, batch, retained):
    """The plain form: every set from the first layer on, both distributions whole."""
    expected = target_log_probabilities(model, layout, batch)
    with with_layers(model, retained):
        got = target_log_probabilities(model, layout, batch)
    return float(F.kl_div(got.double(), expected.double(), log_target=True, reduction="sum"))


@pytest.mark.parametrize("sets", [PAIRS, PAIRS[::-1], MIXED, [(0, 1, 2, 3)]])
@torch.inference_mode()
def test_hidden_states_are_those_of_each_set_alone_to_the_bit(teacher, batch, sets):
    seen = dict(hidden_states_of_sets(teacher.model, batch, sets))
    assert list(seen) == sorted(sets)
    for retained, hidden in seen.items():
        with with_layers(teacher.model, retained):
            assert torch.equal(hidden, hidden_states(teacher.model, batch))
    assert len(teacher.model.model.layers) == 4


@torch.inference_mode()
def test_what_sets_begin_with_is_computed_once(teacher, batch):
    calls = []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in teacher.model.model.layers]
    list(hidden_states_of_sets(teacher.model, batch, PAIRS))
    for handle in handles:
        handle.remove()
    beginnings = {one[:size] for one in PAIRS for size in (1, 2)}
    assert len(calls) == len(beginnings) == 9 < 2 * len(PAIRS)


@pytest.mark.parametrize("chunk", [1, 7, 128])
@torch.inference_mode()
def test_the_divergence_is_that_of_whole_distributions(teacher, batch, chunk, monkeypatch):
    monkeypatch.setattr(shared_prefix, "CPU_CHUNK", chunk)
    expected = expected_speech(teacher.model, teacher.layout, batch)
    for retained, total in divergence_sums(teacher.model, teacher.layout, batch, expected, MIXED).items():
        assert total == pytest.approx(dense(teacher.model, teacher.layout, batch, retained), rel=1e-5, abs=1e-5)


@torch.inference_mode()
def test_a_head_with_a_bias_and_rows_of_its_own(teacher, batch):
    model = tiny_model(vocab_size=len(teacher.tokenizer), tied=False, seed=5)
    vocabulary, width = model.lm_head.weight.shape
    first = teacher.layout.first_code_id
    model.lm_head = torch.nn.Linear(width, vocabulary - first)
    torch.nn.init.normal_(model.lm_head.bias, std=3.0)
    layout = replace(teacher.layout, first_head_id=first)
    if layout.end_id < first:  # a head of speech alone holds END behind the codes
        layout = replace(layout, end_id=first + layout.num_codes)
    expected = expected_speech(model, layout, batch)
    sums = divergence_sums(model, layout, batch, expected, PAIRS)
    for retained, total in sums.items():
        assert total == pytest.approx(dense(model, layout, batch, retained), rel=1e-5)


@torch.inference_mode()
def test_the_whole_model_differs_in_nothing_and_never_below(teacher, batch):
    expected = expected_speech(teacher.model, teacher.layout, batch)
    sums = divergence_sums(teacher.model, teacher.layout, batch, expected, [(0, 1, 2, 3)])
    assert 0 <= sums[0, 1, 2, 3] < 1e-4
