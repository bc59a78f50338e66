"""One test for each CUDA path, against its reference on the CPU or in a plainer form.

These files import only what a machine with torch and transformers has, or what a few small wheels bring. With
SLIMTTS_TEST_DEVICE=cpu they run without a GPU, which proves the tests themselves: tests/unit/test_gpu_kit.py does that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

import pytest
import torch

from slimtts.machine import prepare_cuda
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout

LAYOUT = SpeechTokenLayout(first_code_id=40, num_codes=23, end_id=39, pad_id=0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    chosen = torch.device(os.environ.get("SLIMTTS_TEST_DEVICE", "cuda"))
    prepare_cuda(chosen)
    return chosen


@pytest.fixture(scope="session")
def on_cuda(device: torch.device) -> bool:
    """Whether kernels that only CUDA has are under test."""
    return device.type == "cuda"


@pytest.fixture
def layout() -> SpeechTokenLayout:
    """The layout of the tiny models."""
    return LAYOUT


@pytest.fixture
def decoding() -> Callable[..., DecodingParams]:
    """Greedy decoding with changes."""

    def make(**changes: object) -> DecodingParams:
        greedy = dict(temperature=0.0, top_p=1.0, max_new_tokens=40, batch_rows=3, seed=1)
        return DecodingParams.model_validate(greedy | changes)

    return make


@pytest.fixture
def random_prompts() -> Callable[..., list[list[int]]]:
    """Prompts of 2 to `longest` tokens, the same for the same seed."""

    def make(count: int, longest: int = 300, seed: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, longest, (count,), generator=generator).tolist()
        return [torch.randint(1, 63, (length,), generator=generator).tolist() for length in lengths]

    return make


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Compares by |a - b| / |b| over all elements; NaN never passes."""

    def compare(actual: torch.Tensor, expected: torch.Tensor, limit: float, name: str = "") -> None:
        a, b = actual.detach().double().cpu(), expected.detach().double().cpu()
        error = float((a - b).norm() / b.norm().clamp_min(1e-30))
        assert math.isfinite(error) and error <= limit, f"{name}: relative error {error:.2e} > {limit:.0e}"

    return compare


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    """TF32 and the cuDNN setting are the process's."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = tf32
