"""Which layers need no more sentences: those whose rank among all layers can hardly change any more.

Every sentence is spoken without each layer, so two layers are compared sentence by sentence. Betting on the difference
(Waudby-Smith & Ramdas, arXiv 2010.09686, drawing without replacement) tells when the order of their means over ALL
sentences is proven, at any number of looks and for any distribution of errors in 0..1; by union over the pairs, the
whole order is the one that all sentences would give, except with probability `risk`. The sentences must come in random
order. At risk 0 only arithmetic counts: whatever the missing sentences give, the order stays.
Legend: N sentences in all, n heard so far, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STAKES = np.linspace(0.1, 0.9, 9)[:, None]  # shares of the wealth that are bet; the mean of these gamblers counts
ROUNDING = 1e-9


def is_surely_higher(one: np.ndarray, other: np.ndarray, total: int, risk: float) -> bool:
    """True when the mean of `one` over all N sentences is above that of `other`, but for probability `risk`.

    Both hold the errors in 0..1 of the first n sentences, fp64 [n].
    """
    gains = (1 + one - other) / 2  # in 0..1; their mean over all N is 1/2 where the layers are equal
    won = gains.cumsum()
    if won[-1] > total / 2 + ROUNDING:
        return True
    if risk == 0:
        return False
    # What the next gain is on average if the layers are equal, given those before; what was won is below N / 2 here.
    fair = np.maximum((total / 2 - (won - gains)) / (total - np.arange(len(gains))), ROUNDING)
    wealth = np.exp(np.log1p(STAKES * (gains / fair - 1)).cumsum(1)).mean(0)
    return bool(wealth.max() >= 1 / risk)


def settled_ranks(errors: Sequence[np.ndarray], total: int, risk: float) -> dict[int, int]:
    """Layers whose rank is settled, with it: 0 is the least important.

    `errors[l]` [n_l] are those without layer l on the first n_l of `total` sentences; n_l is lower for a layer that was
    stopped. `risk` is that of any wrong order among all pairs.
    """
    count = len(errors)
    higher = np.zeros((count, count), dtype=bool)
    for i in range(count):
        for j in range(count):
            both = min(len(errors[i]), len(errors[j]))
            if i != j:
                a_pair = risk / (count * (count - 1))
                higher[i, j] = is_surely_higher(errors[i][:both], errors[j][:both], total, a_pair)
    known = higher | higher.T
    return {i: int(higher[i].sum()) for i in range(count) if known[i].sum() == count - 1}


def order_with_settled(means: Sequence[float], settled: dict[int, int]) -> list[int]:
    """All layers, the least important first: settled ones at their rank, the others by their means, then by number."""
    order = sorted((i for i in range(len(means)) if i not in settled), key=lambda i: (means[i], i))
    for layer, rank in sorted(settled.items(), key=lambda item: item[1]):
        order.insert(rank, layer)
    return order
