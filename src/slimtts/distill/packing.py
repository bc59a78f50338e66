"""Several sequences in one row: nothing is padded but a row's end, every sequence sees itself alone.

Positions start again at 0 with each sequence. transformers takes a row whose positions jump for several sequences, and
masks them from each other; on CUDA the attention is torch's variable-length flash kernel, which never makes a mask.
Legend: B rows, T tokens a row, N sequences, H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface

from slimtts.decoding.teacher_forcing import NO_TARGET, ForcedBatch, ForcedSequence
from slimtts.errors import InvalidInputError

VARLEN = "slimtts_varlen"


@dataclass(frozen=True)
class PackedBatch(ForcedBatch):
    """int64 ids [B, T] of sequences one after the other; `positions` [B, T] count from 0 within each.

    What is left of a row counts as one more sequence, without targets.
    """

    positions: torch.Tensor | None = None

    def _moved(self, device: torch.device) -> dict[str, Any]:
        positions = self.positions if self.positions is None else self.positions.to(device, non_blocking=True)
        return super()._moved(device) | {"positions": positions}


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices of the sequences in each row of at most so many tokens: the longest first, each where it fits first.

    Raises:
        InvalidInputError: a sequence is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[index]
        if length > row_tokens:
            raise InvalidInputError(
                f"sequence {index}",
                f"{length} tokens",
                f"at most distill_student.packed_row_tokens, {row_tokens}",
                "raise it, or leave out utterances that are so long",
            )
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(index)
        room[row] -= length
    return rows


def collate_packed(rows: Sequence[Sequence[ForcedSequence]], row_tokens: int, pad_id: int) -> PackedBatch:
    """A batch of such rows, each `row_tokens` wide."""
    shape = (len(rows), row_tokens)
    ids, targets = torch.full(shape, pad_id), torch.full(shape, NO_TARGET)
    positions = torch.zeros(shape, dtype=torch.int64)
    for row, sequences in enumerate(rows):
        start = 0
        for s in sequences:
            end, first_target = start + len(s.ids), start + s.target_start
            ids[row, start:end] = torch.tensor(s.ids)
            targets[row, first_target : first_target + len(s.targets)] = torch.tensor(s.targets)
            positions[row, start:end] = torch.arange(len(s.ids))
            start = end
        positions[row, start:] = torch.arange(row_tokens - start)
    return PackedBatch(ids, targets, positions=positions)


def place_of_tokens(batch: ForcedBatch) -> dict[str, Any]:
    """What a model's forward must know beside the embeddings; nothing for rows of one sequence."""
    if not isinstance(batch, PackedBatch) or batch.positions is None:
        return {}
    places: dict[str, Any] = {"position_ids": batch.positions}
    if batch.positions.device.type == "cuda":
        places |= {"cu_seq_lens_q": sequence_bounds(batch.positions), "max_length_q": batch.positions.shape[1]}
    return places


def sequence_bounds(positions: torch.Tensor) -> torch.Tensor:
    """int32 [N + 1]: where each sequence starts among the B x T tokens, and their number."""
    starts = (positions.flatten() == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([positions.numel()])]).to(torch.int32)


def varlen_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of packed rows; query [B, H, T, D], key and value with H heads or fewer.

    `cu_seq_lens_q` are the sequences' bounds; no sequence is longer than `max_length_q`.
    """
    rows, heads, tokens, channels = query.shape
    # The kernel knows fp16 and bf16 only, and autocast does not know the kernel.
    dtype = torch.get_autocast_dtype(query.device.type) if query.dtype == torch.float32 else query.dtype
    # A key for every head that asks: that heads may share keys is not in the kernel's documentation.
    flat = [
        part.repeat_interleave(heads // part.shape[1], 1).transpose(1, 2).reshape(rows * tokens, heads, channels)
        for part in (query, key, value)
    ]
    bounds, causal = cu_seq_lens_q, (-1, 0)
    q, k, v = (part.to(dtype) for part in flat)
    out = varlen.varlen_attn(q, k, v, bounds, bounds, max_length_q, max_length_q, scale=scaling, window_size=causal)
    return out.view(rows, tokens, heads, channels).to(value.dtype), None


def use_varlen_attention(model: Any) -> None:
    """Gives the model this attention, for packed batches only, under a name that transformers keeps for it."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, lambda *_a, **_k: None)
    model.set_attn_implementation(VARLEN)
