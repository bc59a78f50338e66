"""How much each layer turns its input: 1 - mean cosine between the hidden states before and after it.

Source: ShortGPT (arXiv 2403.03853), the baseline CLI of SPADE (arXiv 2509.20802).
Legend: B sequences, T tokens, D hidden, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.model_weights import check_finite


class CosineMeter:
    """Accumulates, for every layer, the cosine between its input and output over target positions.

    Used as a context: hooks are removed on any exit, so the model is as it was.
    """

    def __init__(self, model: Any) -> None:
        self.layers = list(model.model.layers)
        self.sums = torch.zeros(len(self.layers), dtype=torch.float64)
        self.count = 0
        self.positions: torch.Tensor | None = None

    def __enter__(self) -> CosineMeter:
        self.handles = [layer.register_forward_hook(self._hook(i)) for i, layer in enumerate(self.layers)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, index: int) -> Any:
        def add(_: Any, args: tuple[torch.Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            before, after = args[0][self.positions].float(), after[self.positions].float()
            self.sums[index] += torch.nn.functional.cosine_similarity(before, after, dim=-1).double().sum().cpu()

        return add

    def observe(self, model: Any, batch: ForcedBatch) -> None:
        """One forward pass over a batch."""
        self.positions = batch.is_target
        model.model(input_ids=batch.ids, use_cache=False)
        self.count += int(self.positions.sum())

    @property
    def influence(self) -> list[float]:
        """1 - mean cosine for each layer."""
        return (1 - self.sums / max(1, self.count)).tolist()


@torch.inference_mode()
def block_influence(model: Any, batches: Sequence[ForcedBatch]) -> list[float]:
    """Influence of every layer over the batches."""
    with CosineMeter(model) as meter:
        for batch in batches:
            meter.observe(model, batch)
    check_finite("what the layers compute", meter.sums)
    return meter.influence
