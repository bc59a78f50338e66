"""Calibration batches of the tiny models, which have 64 tokens."""

import pytest
import torch

from slimtts.decoding.teacher_forcing import NO_TARGET, ForcedBatch


def made_batch(rows, length, first_target, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 64, (rows, length), generator=generator)
    targets = torch.randint(0, 17, (rows, length), generator=generator)
    targets[:, :first_target] = NO_TARGET
    targets[-1, -2:] = NO_TARGET  # padding of the shorter row
    return ForcedBatch(ids, targets)


@pytest.fixture(scope="session")
def batches():
    """192 target positions in two batches of different length."""
    return [made_batch(7, 16, 2, 1), made_batch(8, 14, 2, 2)]
