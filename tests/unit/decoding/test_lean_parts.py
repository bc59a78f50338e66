"""Products and norms of the lean decoder are the library's, however many rows there are."""

import pytest
import torch
from torch.nn import functional as F

from slimtts.decoding.lean_parts import MOST_FEW_ROWS, matrix, norm, normed, product


@pytest.mark.parametrize("rows", [1, 2, MOST_FEW_ROWS, MOST_FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_a_linear_layer(rows, dtype):
    torch.manual_seed(rows)
    weight, hidden = torch.randn(24, 16, dtype=dtype), torch.randn(rows, 16, dtype=dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for added in (None, torch.randn(24, dtype=dtype), torch.randn(rows, 24, dtype=dtype)):
        found = product(hidden, matrix(weight), added)
        expected = F.linear(hidden, weight) if added is None else F.linear(hidden, weight) + added
        torch.testing.assert_close(found, expected, **tolerance)
        assert found.is_contiguous()


def test_a_part_of_a_wider_tensor_is_multiplied_too():
    weight, wide = torch.randn(8, 16), torch.randn(3, 20)
    torch.testing.assert_close(product(wide[:, 2:18], matrix(weight)), F.linear(wide[:, 2:18], weight))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_the_librarys_also_where_eps_decides(scale, dtype):
    torch.manual_seed(1)
    hidden, weight = (torch.randn(5, 32) * scale).to(dtype), torch.rand(32, dtype=dtype) + 0.5
    found = normed(hidden, norm(weight, 1e-6))
    expected = F.rms_norm(hidden, (32,), weight, 1e-6)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-7)
