"""The terms of the healing loss. Each is a mean over target positions; masked positions get no gradient.

Where a step's batch is split, `count` is the number of positions of all parts: then the parts' values, and their
gradients, add up to those of the whole.
Legend: P target positions, V spoken vocabulary, B sequences, T tokens, D hidden, H heads.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

SKEW = 0.1


def _mean(values: torch.Tensor, count: int) -> torch.Tensor:
    """Sum over `count`; an empty selection gives an exact zero that still has a gradient path."""
    return values.sum() / max(1, count)


def cross_entropy(student_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood; logits [P, V], targets [P] in 0..V-1."""
    return _mean(F.cross_entropy(student_logits.float(), targets, reduction="none"), len(targets))


def skew_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, skew: float = SKEW, temperature: float = 1.0
) -> torch.Tensor:
    """KL(p || b p + (1-b) q), p teacher, q student, mean over [P, V] rows. Source: arXiv 2402.03898, b = 0.1.

    Both are softened by the temperature t and the result is scaled by t^2, so that gradients keep their size
    (arXiv 1503.02531, section 2.1).
    """
    log_p = F.log_softmax(teacher_logits.float() / temperature, -1)
    log_q = F.log_softmax(student_logits.float() / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    # log(b p + (1-b) q) = log q + log1p(b (p/q - 1)) would lose small q; the plain mixture of fp32 is exact enough.
    log_mixture = (skew * p + (1 - skew) * q).clamp_min(torch.finfo(p.dtype).tiny).log()
    return temperature**2 * _mean((p * (log_p - log_mixture)).sum(-1), len(p))


def mean_squared(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, count: int | None = None
) -> torch.Tensor:
    """MSE of [B, T, D] over positions where bool mask [B, T] holds, or of [P, D] without a mask."""
    difference = student.float() - teacher.float()
    if mask is not None:
        difference = difference[mask]
    return _mean(difference.square().mean(-1), len(difference) if count is None else count)


def energy(teacher: torch.Tensor, mask: torch.Tensor | None, count: int | None = None) -> torch.Tensor:
    """MSE(teacher, 0), masked as above."""
    return mean_squared(teacher, torch.zeros_like(teacher), mask, count)


def relative_squared(
    student: torch.Tensor,
    teacher: torch.Tensor,
    mask: torch.Tensor | None,
    count: int | None = None,
    whole_energy: torch.Tensor | None = None,
) -> torch.Tensor:
    """SquareHead: MSE(student, teacher) / MSE(teacher, 0), masked as above. Source: arXiv 2310.06927.

    `whole_energy` is the denominator where this is a part of a batch.
    """
    scale = energy(teacher, mask) if whole_energy is None else whole_energy
    return mean_squared(student, teacher, mask, count) / scale.clamp_min(1e-8)


def attention_squared(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, count: int | None = None
) -> torch.Tensor:
    """MSE of attention probabilities [B, H, T, T] over query positions where bool mask [B, T] holds."""
    return mean_squared(student.transpose(1, 2).flatten(2), teacher.transpose(1, 2).flatten(2), mask, count)


def dynamic_matches(retained: list[int], num_layers: int) -> list[int]:
    """The teacher layer that student layer n imitates: r_{n+1} - 1, and the last layer for the last.

    Source: SPADE (arXiv 2509.20802): each student layer answers for the segment that was cut behind it.
    """
    return [*(following - 1 for following in retained[1:]), num_layers - 1]
