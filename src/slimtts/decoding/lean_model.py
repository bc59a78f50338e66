"""A Llama or Qwen2 laid out for decoding: few large matrices, a preallocated cache, no module calls.

The same numbers as the model's own forward, to rounding. What makes it fast: query, key and value as one product, gate
and up as one; only the rows of the head that can be spoken; keys and values written in place, row b's token of position
p in column p, so that no mask is needed for one row. Other models keep their own forward (`plain.py`).
Legend: B rows, T tokens, N = B T, V spoken vocabulary, D hidden, H heads, K key/value heads, G = H / K, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from slimtts.decoding.heads import padded_rows
from slimtts.decoding.lean_parts import Matrix, Norm, matrix, norm, normed, product


@dataclass(frozen=True)
class Shape:
    """What all layers have in common."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class LeanLayer:
    """One layer's weights."""

    norm: Norm
    qkv: Matrix
    qkv_bias: torch.Tensor | None
    out: Matrix
    ffn_norm: Norm
    gate_up: Matrix
    down: Matrix


def before_attention(
    hidden: torch.Tensor, layer: LeanLayer, turn: tuple[torch.Tensor, torch.Tensor], shape: Shape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden [N, D] -> queries [N, H, d], keys [N, K, d], both turned by their position, and values [N, K, d]."""
    together = product(normed(hidden, layer.norm), layer.qkv, layer.qkv_bias)
    split = together.view(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
    turning = split[:, : shape.heads + shape.kv_heads]
    cos, signed_sin = turn
    turned = torch.addcmul(turning * cos, turning.roll(shape.head_dim // 2, -1), signed_sin)
    return turned[:, : shape.heads], turned[:, shape.heads :], split[:, shape.heads + shape.kv_heads :]


def after_attention(hidden: torch.Tensor, attended: torch.Tensor, layer: LeanLayer) -> torch.Tensor:
    """Hidden [N, D] and what its heads saw [N, H d] -> hidden behind the layer [N, D]."""
    hidden = product(attended, layer.out, hidden)
    gate, up = product(normed(hidden, layer.ffn_norm), layer.gate_up).chunk(2, -1)
    return product(F.silu(gate).mul_(up), layer.down, hidden)


class StaticCache:
    """Keys and values [rows, K, columns, d] of every layer, allocated once; a row's position p is its column p."""

    def __init__(self, lean: LeanModel, rows: int, columns: int) -> None:
        shape, like = lean.shape, lean.embeddings
        size = (len(lean.layers), 2, rows, shape.kv_heads, columns, shape.head_dim)
        self._hold(torch.zeros(size, dtype=like.dtype, device=like.device))
        self.turns = lean.turns(columns)

    def _hold(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self.layers = [(keys, values) for keys, values in memory]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Only these rows, int64 [kept], in this order."""
        self._hold(self.memory.index_select(2, rows))


class LeanModel:
    """The weights of a model for decoding. Reading them is safe from several threads."""

    def __init__(self, model: Any, head: torch.Tensor, bias: torch.Tensor | None, compiled: bool = False) -> None:
        inner, first = model.model, model.model.layers[0].self_attn
        self.shape = Shape(
            heads=first.q_proj.out_features // first.head_dim,
            kv_heads=first.k_proj.out_features // first.head_dim,
            head_dim=first.head_dim,
        )
        self.embeddings = inner.embed_tokens.weight.detach()
        self.layers = [_lean_layer(layer) for layer in inner.layers]
        self.norm = norm(inner.norm.weight, inner.norm.variance_epsilon)
        self.spoken = len(head)
        self.head, self.bias = matrix(padded_rows(head)), None if bias is None else padded_rows(bias)
        self._rotary = inner.rotary_emb
        self.compiled = compiled
        # One compilation serves all layers; attention stays outside, because its width changes.
        self._before: Callable[..., Any] = before_attention
        self._after: Callable[..., Any] = after_attention
        if compiled:
            self._before = torch.compile(before_attention, dynamic=False)
            self._after = torch.compile(after_attention, dynamic=False)

    @property
    def bytes_a_token(self) -> int:
        """Of weights, read for every token however many rows speak together."""
        matrices = [self.head, *(part for one in self.layers for part in (one.qkv, one.out, one.gate_up, one.down))]
        return sum(one.by_out.nbytes for one in matrices)

    def turns(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [columns, 1, d]; the sine's first half is negative, so that a roll replaces a rotation."""
        positions = torch.arange(columns, device=self.embeddings.device)[None]
        cos, sin = self._rotary(self.embeddings[:1], positions)
        half = self.shape.head_dim // 2
        return cos[0].unsqueeze(1), torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1).unsqueeze(1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden [B, D] behind the last layer -> [B, V], fp32."""
        return product(normed(hidden, self.norm), self.head, self.bias)[:, : self.spoken].float()

    def prefill(
        self,
        ids: torch.Tensor,
        cache: StaticCache,
        rows: torch.Tensor,
        start: int = 0,
        skip: torch.Tensor | None = None,
    ) -> None:
        """Writes keys and values of ids [B, T], right-padded, into columns start.. of the cache's `rows` [B].

        Rows that are equal so far, in their ids and in the layers that they skipped (bool [B, L]), are computed once.
        With a `start`, the columns before it hold the tokens before, and there is one row.
        """
        unique, kind_of_row = torch.unique(ids, dim=0, return_inverse=True)
        length, shape = ids.shape[1], self.shape
        hidden = self.embeddings[unique.flatten()]
        cos, signed_sin = (table[start : start + length] for table in cache.turns)
        mask = None
        if start:
            columns = torch.arange(start + length, device=ids.device)
            mask = columns <= columns[start:, None]
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, cache.layers, strict=True)):
            kinds = hidden.shape[0] // length
            turn = (cos.repeat(kinds, 1, 1), signed_sin.repeat(kinds, 1, 1))
            split = before_attention(hidden, layer, turn, shape)
            q, k, v = (part.unflatten(0, (kinds, length)).transpose(1, 2) for part in split)
            keys[rows, :, start : start + length] = k[kind_of_row]
            values[rows, :, start : start + length] = v[kind_of_row]
            if start:
                k, v = (seen.index_select(0, rows)[:, :, : start + length] for seen in (keys, values))
            attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
            after = after_attention(hidden, attended.transpose(1, 2).reshape(kinds * length, -1), layer)
            if skip is None or not skip[:, index].any():
                hidden = after
                continue
            ways, kind_of_row = torch.unique(
                torch.stack([kind_of_row, skip[:, index].long()]), dim=1, return_inverse=True
            )
            before, after = (states.unflatten(0, (kinds, length))[ways[0]] for states in (hidden, after))
            hidden = torch.where(ways[1].bool().view(-1, 1, 1), before, after).flatten(0, 1)

    def step(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: StaticCache,
        width: int,
        level: bool,
        passed: Sequence[torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """One token of every row: ids [B] at positions [B], all below `width` -> hidden [B, D] behind the last layer.

        `level` says that all rows are at position width - 1. `passed` has for each layer the rows that skip it, bool
        [B, 1], or None for nobody.
        """
        shape, rows = self.shape, ids.shape[0]
        groups = (rows, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
        hidden = self.embeddings[ids]
        turn = (cache.turns[0][positions], cache.turns[1][positions])
        place, mask = None, None
        if not level:
            place = (
                torch.arange(rows, device=ids.device)[:, None],
                torch.arange(shape.kv_heads, device=ids.device),
                positions[:, None],
            )
            unseen = torch.arange(width, device=ids.device) > positions[:, None]
            mask = torch.zeros(rows, 1, 1, width, dtype=hidden.dtype, device=ids.device)
            mask.masked_fill_(unseen[:, None, None], -torch.inf)
        for index, (layer, (keys, values)) in enumerate(zip(self.layers, cache.layers, strict=True)):
            q, k, v = self._before(hidden, layer, turn, shape)
            if place is None:
                keys.select(2, width - 1).copy_(k)
                values.select(2, width - 1).copy_(v)
            else:
                keys[place], values[place] = k, v
            # The queries of a group look at the same keys: as rows of one head they need no copies of them.
            attended = F.scaled_dot_product_attention(
                q.reshape(groups), keys.narrow(2, 0, width), values.narrow(2, 0, width), mask
            )
            after = self._after(hidden, attended.reshape(rows, -1), layer)
            skipping = passed[index] if passed is not None else None
            hidden = after if skipping is None else torch.where(skipping, hidden, after)
        return hidden


def _lean_layer(layer: Any) -> LeanLayer:
    attention, ffn = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LeanLayer(
        norm=norm(layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon),
        qkv=matrix(torch.cat([part.weight for part in qkv])),
        qkv_bias=None if qkv[0].bias is None else torch.cat([part.bias for part in qkv]).detach(),
        out=matrix(attention.o_proj.weight),
        ffn_norm=norm(layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon),
        gate_up=matrix(torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight])),
        down=matrix(ffn.down_proj.weight),
    )
