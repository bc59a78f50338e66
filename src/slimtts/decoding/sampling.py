"""From logits to the next code: greedy, nucleus, top-k, and codes that were met and become less likely.

Legend: B rows, V spoken vocabulary (codes + END).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimtts.teachers.base import SpeechTokenLayout


def sample(
    logits: torch.Tensor, temperature: float, top_p: float, uniform: torch.Tensor, top_k: int = 0
) -> torch.Tensor:
    """One id a row from logits [B, V]; greedy at temperature 0. `uniform` [B] in 0..1 decides for each row.

    `top_p` and `top_k` (unless 0) both limit the ids to choose among, and both look at the whole distribution.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = likeliest(torch.softmax(logits / temperature, -1), top_p, top_k)
    cumulative = probabilities.cumsum(-1)
    rank = (cumulative < uniform.unsqueeze(-1) * cumulative[:, -1:]).sum(-1, keepdim=True)
    rank = rank.clamp(max=probabilities.shape[-1] - 1)
    return (rank if order is None else order.gather(-1, rank)).squeeze(-1)


def likeliest(probabilities: torch.Tensor, top_p: float, top_k: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of [B, V] those within both limits, 0 for the others, and their ids, in falling order; `top_k` 0 is no limit.

    Without a limit they come as they are, and the ids are None: a sort of a large vocabulary costs as much as a layer.
    """
    if top_p >= 1 and not top_k:
        return probabilities, None
    if top_k:
        ordered, order = probabilities.topk(min(top_k, probabilities.shape[-1]), -1)
    else:
        ordered, order = probabilities.sort(-1, descending=True)
    return ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0), order


def codes_met(prompts: Sequence[Sequence[int]], layout: SpeechTokenLayout) -> torch.Tensor:
    """bool [B, V]: the codes, and END, that occur in each prompt."""
    met = torch.zeros(len(prompts), layout.num_codes + 1, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        codes = [token - layout.first_code_id for token in prompt]
        met[row, [code for code in codes if 0 <= code < layout.num_codes]] = True
        met[row, layout.num_codes] = layout.end_id in prompt
    return met


def penalized(logits: torch.Tensor, met: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits [B, V]; those of `met` [B, V] are divided by the penalty where positive, else multiplied (1909.05858)."""
    return torch.where(met, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def uniforms_of(seed: int, row_seed: int, steps: int) -> torch.Tensor:
    """[2, steps] in 0..1: what decides each code of a row, and what decides when one is drawn again."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + row_seed)
    return torch.rand(2, steps, generator=generator)
