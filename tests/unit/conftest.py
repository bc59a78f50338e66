"""One tiny teacher for all unit tests; nothing in it may be changed by a test."""

import pytest
import torch

from slimtts.testing.tiny import tiny_teacher


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
