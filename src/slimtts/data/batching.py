"""Groups items into batches of at most so many padded tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def token_budget_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Indices grouped so that rows x longest stays within the budget; neighbours in length share a batch.

    An item longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = [[]]
    for index in np.argsort(np.asarray(lengths), kind="stable").tolist():
        if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > tokens_per_batch:
            batches.append([])
        batches[-1].append(index)
    return [batch for batch in batches if batch]
