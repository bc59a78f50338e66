"""Cross-entropy and skew-KL straight from hidden states: no [P, V] tensor of logits ever exists.

The output head and both losses are worked off in chunks of positions that fit the processor's cache; the gradient is
known in closed form, so it is made in the same pass. Equal to `losses.cross_entropy` and `losses.skew_kl` on full
logits, which are its reference in the tests.
Legend: P target positions, V spoken vocabulary, D hidden, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from slimtts.decoding.heads import padded_rows

# 256 x 4,097 fp32 are 4 MB: on a CPU 128 to 512 measured alike, 64 and 1,024 slower (2026-11-21, Zen 4). A GPU reads
# the head and its gradient once a chunk, 1.1 GB for 65,537 rows of 2,048, so that its chunks are longer.
CHUNK_POSITIONS = {"cpu": 256, "cuda": 1024}

TeacherLogits = Callable[[slice], torch.Tensor]


@dataclass(frozen=True)
class HeadTerms:
    """Weights of the two terms and the constants of the second; see `losses.skew_kl`."""

    cross_entropy: float
    skew_kl: float
    skew: float
    temperature: float


class ChunkGradient(Protocol):
    """`chunk_gradient`, as it is or compiled."""

    def __call__(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        teacher_logits: torch.Tensor | None,
        share: float | torch.Tensor,
        terms: HeadTerms,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `chunk_gradient`."""
        ...


def chunk_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    share: float | torch.Tensor,
    terms: HeadTerms,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d weighted sum / d logits [C, V], the sums (cross-entropy, skew-KL) [2]) of a chunk of fp32 logits [C, V]."""
    log_q = logits.log_softmax(-1)
    chosen = log_q.gather(1, targets.unsqueeze(1))
    q = log_q.exp_()
    if terms.skew_kl and teacher_logits is not None:
        t = terms.temperature
        softer_q, p = (
            (q, teacher_logits.softmax(-1)) if t == 1 else ((x / t).softmax(-1) for x in (logits, teacher_logits))
        )
        divergence, gradient = _skew_kl(softer_q, p, terms.skew)
        gradient.mul_(terms.skew_kl * t * share)
        divergence = divergence * (t**2 * share)
    else:
        divergence, gradient = torch.zeros_like(chosen[0, 0]), torch.zeros_like(q)
    if terms.cross_entropy:
        # d CE / d logits = q - onehot
        q.scatter_add_(1, targets.unsqueeze(1), torch.full_like(chosen, -1.0))
        gradient.add_(q.mul_(terms.cross_entropy * share))
    return gradient, torch.stack([-share * chosen.sum(), divergence])


def _skew_kl(q: torch.Tensor, p: torch.Tensor, skew: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of KL(p || m), m = b p + (1-b) q, and its gradient by q's logits: (1-b) q_j (sum q r - r_j), r = p / m."""
    tiny = torch.finfo(torch.float32).tiny
    ratio = p / torch.lerp(q, p, skew).clamp_min_(tiny)
    divergence = torch.linalg.vecdot(p, ratio.clamp_min(tiny).log_()).sum()
    gradient = torch.linalg.vecdot(q, ratio).unsqueeze(1).sub(ratio).mul_(q)
    return divergence, gradient.mul_(1 - skew)


def product_type(hidden: torch.Tensor) -> torch.dtype:
    """The type that autocast, where it is on, would give a product of this tensor."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def head_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: TeacherLogits | None,
    terms: HeadTerms,
    chunk_positions: int | None = None,
    count: int | None = None,
    of_chunk: ChunkGradient = chunk_gradient,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weighted sum with gradient, cross-entropy, skew-KL) from the student's hidden [P, D] and head [V, D].

    `targets` [P] in 0..V-1; `teacher_logits(rows)` gives logits or log-probabilities [C, V] of those positions. The
    head's product is taken in autocast's type, the rest in fp32. Means are over `count` positions (default: P), as in
    `losses`.
    """
    share = 1 / max(1, len(targets) if count is None else count)
    chunk = chunk_positions or CHUNK_POSITIONS[hidden.device.type]
    total, cross_entropy, skew_kl = _HeadLoss.apply(
        hidden, head, targets, teacher_logits, terms, chunk, share, of_chunk
    )
    return total, cross_entropy, skew_kl


class _HeadLoss(torch.autograd.Function):
    """Value and gradients in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Any,
        head: Any,
        targets: Any,
        teacher: Any,
        terms: Any,
        chunk: int,
        share: float,
        of_chunk: ChunkGradient,
    ) -> Any:
        device, dtype = hidden.device.type, product_type(hidden)
        h, w, spoken = hidden.to(dtype), padded_rows(head.to(dtype)), len(head)
        hidden_grad, head_grad = torch.empty_like(h), torch.zeros(w.shape, device=head.device)
        padded = torch.zeros(chunk, len(w), dtype=dtype, device=head.device) if len(w) > spoken else None
        sums = torch.zeros(2, device=hidden.device)
        # A compiled function is compiled anew for a number that changes from step to step, not for a tensor.
        scale = share if of_chunk is chunk_gradient else torch.tensor(share, device=hidden.device)
        speaks = bool(terms.skew_kl) and teacher is not None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                rows = slice(start, start + chunk)
                logits = F.linear(h[rows], w)[:, :spoken].float()
                taught = teacher(rows).float() if speaks else None
                gradient, of_rows = of_chunk(logits, targets[rows], taught, scale, terms)
                sums += of_rows
                if padded is None:
                    gradient = gradient.to(dtype)
                else:
                    padded[: len(gradient), :spoken] = gradient
                    gradient = padded[: len(gradient)]
                torch.mm(gradient, w, out=hidden_grad[rows])
                head_grad += gradient.T @ h[rows]
        ctx.save_for_backward(hidden_grad.to(hidden.dtype), head_grad[:spoken].to(head.dtype))
        cross_entropy, skew_kl = sums.unbind()
        total = terms.cross_entropy * cross_entropy + terms.skew_kl * skew_kl
        ctx.mark_non_differentiable(cross_entropy, skew_kl)
        return total, cross_entropy, skew_kl

    @staticmethod
    def backward(ctx: Any, upstream: Any, *_: Any) -> Any:
        hidden_grad, head_grad = ctx.saved_tensors
        return upstream * hidden_grad, upstream * head_grad, None, None, None, None, None, None
