"""One of the two models of speculative decoding with its cache, where a few tokens may be computed over and over.

Legend: T tokens of a block, V spoken vocabulary, D hidden, H heads, K key/value heads, G = H / K, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from slimtts.decoding.heads import spoken_bias, spoken_head
from slimtts.decoding.lean_model import LeanModel, StaticCache, after_attention, before_attention
from slimtts.decoding.lean_pool import lean_pool
from slimtts.teachers.base import SpeechTokenLayout

LEAST_REUSED = 8  # tokens of an earlier prompt that are worth keeping
# Where tokens stand: columns known to the host, or a tensor of them [T] in a recorded graph.
Place: TypeAlias = slice | torch.Tensor


class Lane:
    """Token ids by position: a prompt, then what was said, then what is only proposed and may be written over."""

    def __init__(self, layout: SpeechTokenLayout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.ids = torch.empty(0, dtype=torch.long, device=device)
        self.prompt: list[int] = []
        self.prompt_length = torch.zeros(1, dtype=torch.long, device=device)

    def reserve(self, columns: int) -> None:
        """Makes room for so many tokens; what was there is forgotten."""
        self.ids, self.prompt = torch.zeros(columns, dtype=torch.long, device=self.device), []

    def begin(self, prompt: Sequence[int]) -> None:
        """A new utterance: everything but the prompt's last token is computed."""
        self.ids[: len(prompt)] = torch.tensor(prompt, device=self.device)
        self.prompt_length.fill_(len(prompt))
        self._prefill(list(prompt))
        self.prompt = list(prompt)

    def write(self, place: Place, codes: torch.Tensor) -> None:
        """Codes [T], `num_codes` for END."""
        is_end = codes == self.layout.num_codes
        self.ids[place] = (codes + self.layout.first_code_id).masked_fill(is_end, self.layout.end_id)

    def logits(self, place: Place, width: int) -> torch.Tensor:
        """[T, V] fp32 behind the tokens of a place; those before it have been computed.

        `width` is a bound for the columns of a place that only the device knows.
        """
        raise NotImplementedError

    def _prefill(self, prompt: list[int]) -> None:
        raise NotImplementedError


class PlainLane(Lane):
    """Any model, by its own forward and a cache that is cut back: slow, and the reference."""

    def __init__(self, model: Any, layout: SpeechTokenLayout) -> None:
        self.head, self.bias = spoken_head(model, layout), spoken_bias(model, layout)
        super().__init__(layout, self.head.device)
        self.model = model

    def _prefill(self, prompt: list[int]) -> None:
        self.cache = DynamicCache(config=self.model.config)
        if len(prompt) > 1:
            self.model.model(input_ids=self.ids[None, : len(prompt) - 1], past_key_values=self.cache, use_cache=True)

    def logits(self, place: Place, width: int) -> torch.Tensor:
        """The place must be columns known to the host."""
        if not isinstance(place, slice):
            raise TypeError("a model's own forward cannot be recorded: its cache is cut by the host")
        too_many = self.cache.get_seq_length() - place.start
        if too_many > 0:
            self.cache.crop(-too_many)
        hidden = self.model.model(
            input_ids=self.ids[None, place], past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        return F.linear(hidden[0], self.head, self.bias).float()


class LeanLane(Lane):
    """A Llama or Qwen2 as `LeanModel` lays it out; what is written over in its static cache needs no cutting."""

    def __init__(self, lean: LeanModel, layout: SpeechTokenLayout) -> None:
        super().__init__(layout, lean.embeddings.device)
        self.lean = lean

    def reserve(self, columns: int) -> None:
        """Allocates the cache too."""
        super().reserve(columns)
        self.cache = StaticCache(self.lean, 1, columns)
        self.columns = torch.arange(columns, device=self.device)

    def _prefill(self, prompt: list[int]) -> None:
        same = 0
        for ours, theirs in zip(self.prompt[:-1], prompt[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        start = same if same >= LEAST_REUSED else 0
        if start < len(prompt) - 1:
            row = torch.zeros(1, dtype=torch.long, device=self.device)
            self.lean.prefill(self.ids[None, start : len(prompt) - 1], self.cache, row, start)

    def logits(self, place: Place, width: int) -> torch.Tensor:
        """As `LeanModel.step`, for several tokens of one row."""
        lean, shape = self.lean, self.lean.shape
        groups = shape.heads // shape.kv_heads
        hidden = lean.embeddings[self.ids[place]]
        turn = (self.cache.turns[0][place], self.cache.turns[1][place])
        tokens, mask = len(hidden), None
        width = place.stop if isinstance(place, slice) else width
        if tokens > 1 or isinstance(place, torch.Tensor):
            unseen = self.columns[:width] > self.columns[place].unsqueeze(1)
            # As numbers, which attention would make of it in every layer.
            mask = torch.zeros(unseen.shape, dtype=hidden.dtype, device=self.device).masked_fill_(unseen, -torch.inf)
            mask = mask.repeat(groups, 1)  # [G T, W]
        for layer, (keys, values) in zip(lean.layers, self.cache.layers, strict=True):
            q, k, v = before_attention(hidden, layer, turn, shape)
            keys[0][:, place], values[0][:, place] = k.transpose(0, 1), v.transpose(0, 1)
            # The queries of a group look at the same keys: they are further rows of one head.
            q = q.view(tokens, shape.kv_heads, groups, -1).permute(1, 2, 0, 3).flatten(1, 2)
            seen = F.scaled_dot_product_attention(q[None], keys[:, :, :width], values[:, :, :width], mask)
            seen = seen.view(shape.kv_heads, groups, tokens, -1).permute(2, 0, 1, 3).reshape(tokens, -1)
            hidden = after_attention(hidden, seen, layer)
        return lean.logits(hidden)


def make_lane(model: Any, layout: SpeechTokenLayout) -> Lane:
    """The faster lane that this model can have."""
    pool = lean_pool(model, layout)
    return PlainLane(model, layout) if pool is None else LeanLane(pool.lean, layout)
