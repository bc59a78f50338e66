"""What a lean layer is made of, matrix products and RMS norms, each in the form that is fastest where its weights are.

In fp32 on a CPU two things count (docs/LOG.md). For a few rows the library multiplies [out, in] by [in, N] up to a
third faster than [N, in] by [in, out], so a weight is laid out both ways. And a norm takes as long as its calls do, so
it is made of few. Elsewhere both are the library's own.
Legend: N rows, D hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

MOST_FEW_ROWS = 8


@dataclass(frozen=True)
class Matrix:
    """A weight as [out, in] and as [in, out], and up to how many rows the first is the faster one."""

    by_out: torch.Tensor
    by_in: torch.Tensor
    few_rows: int


@dataclass(frozen=True)
class Norm:
    """An RMS norm's weight [D]; on a CPU also times sqrt(D), and sqrt(D eps), which is what eps makes of no length."""

    weight: torch.Tensor
    eps: float
    scaled: torch.Tensor | None
    least: torch.Tensor | None


def matrix(weight: torch.Tensor) -> Matrix:
    """A linear layer's weight [out, in]; copied only in fp32 on a CPU."""
    weight = weight.detach()
    if _fp32_on_cpu(weight):
        return Matrix(weight.contiguous(), weight.t().contiguous(), MOST_FEW_ROWS)
    return Matrix(weight, weight.t(), 0)


def norm(weight: torch.Tensor, eps: float) -> Norm:
    """An RMS norm's weight [D]."""
    weight, size = weight.detach(), weight.shape[0]
    if _fp32_on_cpu(weight):
        return Norm(weight, eps, weight * math.sqrt(size), torch.tensor(math.sqrt(size * eps)))
    return Norm(weight, eps, None, None)


def product(rows: torch.Tensor, weight: Matrix, added: torch.Tensor | None = None) -> torch.Tensor:
    """Rows [N, in] -> [N, out], plus `added`, [N, out] or [out]."""
    count = rows.shape[0]
    if count > weight.few_rows:
        return torch.mm(rows, weight.by_in) if added is None else torch.addmm(added, rows, weight.by_in)
    # One column alone would go to a slower routine than two.
    columns = (rows if count > 1 else torch.cat((rows, rows))).t()
    outcome = torch.mm(weight.by_out, columns)[:, :count].t()
    return outcome.contiguous() if added is None else (added + outcome).contiguous()


def normed(rows: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Rows [N, D] over their root mean square, times the norm's weight [N, D]."""
    if norm.scaled is None or norm.least is None:
        return F.rms_norm(rows, rows.shape[-1:], norm.weight, norm.eps)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return (rows / torch.hypot(length, norm.least)).mul_(norm.scaled)


def _fp32_on_cpu(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
