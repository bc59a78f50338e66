"""The rows of an output head that matter for speech: those that can be spoken, those that are labels in training."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from slimtts.teachers.base import SpeechTokenLayout

# CUDA's products want rows of aligned length. LLaSA speaks 65,537 ids: measured 100 to 150 TFLOP/s in training and
# 300 us a step of 16 rows, against 690 and 75 with 65,600 (H200, 2026-11-28).
ROW_MULTIPLE = {"cpu": 1, "cuda": 64}


def padded_rows(of_head: torch.Tensor) -> torch.Tensor:
    """A head [V, D] or its bias [V] with rows of zeros behind, as many as the device multiplies well."""
    missing = -len(of_head) % ROW_MULTIPLE[of_head.device.type]
    return F.pad(of_head, (*(0, 0) * (of_head.ndim - 1), 0, missing)) if missing else of_head


def spoken_head(model: Any, layout: SpeechTokenLayout) -> torch.Tensor:
    """Rows of the output head that can be spoken: [V, D], code i in row i, END last."""
    return _spoken_rows(model.get_output_embeddings().weight, layout)


def spoken_bias(model: Any, layout: SpeechTokenLayout) -> torch.Tensor | None:
    """The head's bias for the same rows, or None."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return None if bias is None else _spoken_rows(bias, layout)


def trained_head(model: Any, layout: SpeechTokenLayout) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of the output head that are labels in training, and their bias: those of `spoken_head`, then the others."""
    of_head, more = model.get_output_embeddings(), layout.labels_after_end
    bias = getattr(of_head, "bias", None)
    return _spoken_rows(of_head.weight, layout, more), None if bias is None else _spoken_rows(bias, layout, more)


def _spoken_rows(of_head: torch.Tensor, layout: SpeechTokenLayout, more: int = 0) -> torch.Tensor:
    first, end = layout.first_code_id - layout.first_head_id, layout.end_id - layout.first_head_id
    return torch.cat([of_head[first : first + layout.num_codes], of_head[end : end + 1 + more]])
