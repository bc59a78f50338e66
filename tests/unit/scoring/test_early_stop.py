"""A layer is stopped when its rank is settled: the order of all layers stays what all sentences would give."""

import numpy as np
import pytest

from slimtts.scoring.early_stop import is_surely_higher, order_with_settled, settled_ranks

# Chance of an error a word without each layer, and with which spread over sentences: like the bundled teacher's.
RATES = (0.98, 0.35, 0.25, 0.12, 0.05, 0.03, 0.02, 0.01)
WORDS, SENTENCES, LOOK = 6, 64, 8


def simulated(rng, rates=RATES, sentences=SENTENCES):
    """[L, N] capped error rates; sentences differ in how hard they are for all layers."""
    hardness = rng.gamma(2.0, 0.5, sentences)
    chance = np.minimum(1, np.asarray(rates)[:, None] * hardness)
    return rng.binomial(WORDS, chance) / WORDS


def by_means(means):
    return order_with_settled(means, {})


def raced(errors, risk):
    """The order, and how many of all trials were made."""
    layers, total = errors.shape
    heard, settled = [errors[i][:0] for i in range(layers)], {}
    for end in range(LOOK, total + 1, LOOK):
        heard = [heard[i] if i in settled else errors[i][:end] for i in range(layers)]
        settled |= settled_ranks(heard, total, risk) if end < total else {}
    return order_with_settled([h.mean() for h in heard], settled), sum(map(len, heard)) / errors.size


def test_arithmetic_alone_never_changes_the_order():
    rng = np.random.default_rng(1)
    made = []
    for _ in range(60):
        errors = simulated(rng, rng.permutation(RATES))
        order, share = raced(errors, 0.0)
        assert order == by_means(errors.mean(1))
        made.append(share)
    assert np.mean(made) < 0.99, "or nothing was ever stopped"


def test_kept_sets_of_every_size_stay_but_for_the_risk():
    rng, risk, rounds = np.random.default_rng(2), 0.2, 60
    changed, made = 0, []
    for _ in range(rounds):
        errors = simulated(rng, rng.permutation(RATES))
        order, share = raced(errors, risk)
        changed += order != by_means(errors.mean(1))
        made.append(share)
    assert changed <= risk * rounds
    assert np.mean(made) < 0.97
    exact = [raced(simulated(np.random.default_rng(seed)), 0.0)[1] for seed in range(20)]
    bold = [raced(simulated(np.random.default_rng(seed)), risk)[1] for seed in range(20)]
    assert np.mean(bold) < np.mean(exact), "risk must buy something"


def test_equal_layers_are_hardly_ever_told_apart():
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(300):
        one, other = simulated(rng, (0.3, 0.3), 40)
        other = rng.permutation(one)  # the same mean over all, another order
        wrong += is_surely_higher(one[:20], other[:20], 40, 0.1)
    assert wrong <= 30


def test_a_huge_gap_is_settled_early_and_a_tie_never():
    high, low = np.ones(64), np.zeros(64)
    assert is_surely_higher(high[:16], low[:16], 64, 1e-4)
    assert not is_surely_higher(low[:63], high[:63], 64, 0.5)
    assert not is_surely_higher(low, low, 64, 0.5)
    assert is_surely_higher(high[:33], low[:33], 64, 0.0) and not is_surely_higher(high[:32], low[:32], 64, 0.0)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_settled_layer_keeps_its_rank_whatever_its_mean(rank):
    means = [0.9, 0.2, 0.1]
    order = order_with_settled(means, {0: rank})
    assert order[rank] == 0 and [i for i in order if i] == [2, 1]


def test_layers_with_fewer_sentences_are_compared_on_those_they_share():
    errors = [np.ones(20), np.zeros(40), np.r_[np.zeros(20), np.ones(20)]]
    assert settled_ranks(errors, 64, 0.05)[0] == 2
