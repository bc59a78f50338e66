"""Pools of batches are made ahead of their use."""

import threading

import torch

from slimtts.distill.batches import STEPS_A_POOL, PairSampler
from slimtts.testing.tiny import tiny_utterances


def test_the_next_pool_is_made_while_this_one_is_used(teacher, monkeypatch):
    sampler, makers = PairSampler(teacher, tiny_utterances(20), 300, 3), []
    make = sampler._pool

    def recorded(number):
        makers.append((number, threading.current_thread() is threading.main_thread()))
        return make(number)

    monkeypatch.setattr(sampler, "_pool", recorded)
    expected = [make(number)[step] for number in range(3) for step in range(STEPS_A_POOL)]
    batches = sampler.from_step(2)
    for reference, batch in zip(expected[2:], batches, strict=False):
        assert torch.equal(batch.ids, reference.ids) and torch.equal(batch.targets, reference.targets)
    batches.close()
    assert [number for number, _ in makers][:3] == [0, 1, 2]  # and the fourth, unless it was not begun
    assert not any(on_main for _, on_main in makers)
