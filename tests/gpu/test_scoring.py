"""Layer scores on the device are the CPU's."""

from __future__ import annotations

import pytest

from slimtts.decoding.teacher_forcing import ForcedSequence, collate
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.set_search import search_sets
from slimtts.testing.tiny import tiny_model

pytestmark = pytest.mark.gpu


@pytest.fixture
def batch(layout, random_prompts):
    sequences = []
    for prompt in random_prompts(5, 40):
        codes = [token % layout.num_codes for token in prompt]
        sequences.append(ForcedSequence((*prompt, *layout.to_ids(codes)), len(prompt) - 1, (*codes, layout.num_codes)))
    return collate(sequences, layout.pad_id)


def test_divergences_of_all_sets_are_the_cpus(device, layout, batch):
    ours = search_sets(tiny_model(tied=False).to(device), layout, [batch.to(device)], 2)
    expected = search_sets(tiny_model(tied=False), layout, [batch], 2)
    for level, reference in zip(ours, expected, strict=True):
        by_layers = {scored.retained: scored.divergence for scored in reference}
        assert all(abs(scored.divergence - by_layers[scored.retained]) < 1e-4 for scored in level)


def test_block_influence_is_the_cpus(device, batch):
    actual = block_influence(tiny_model(tied=False).to(device), [batch.to(device)])
    assert actual == pytest.approx(block_influence(tiny_model(tied=False), [batch]), abs=1e-4)
