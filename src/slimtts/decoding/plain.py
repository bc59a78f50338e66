"""Generation by the model's own forward and a growing cache: for every model, and the reference of the fast path.

Legend: B rows, T tokens, V spoken vocabulary (codes + END), L decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from slimtts.decoding import ras
from slimtts.decoding.heads import spoken_bias, spoken_head
from slimtts.decoding.row_slots import Mix
from slimtts.decoding.sampling import codes_met, penalized, sample, uniforms_of
from slimtts.model_weights import check_finite
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout


@contextmanager
def skipping_layers(model: Any, skip: torch.Tensor | None) -> Iterator[None]:
    """Within the block, row b passes layer l by when `skip[b, l]`; bool [B, L]. The model is restored on any exit."""
    if skip is None:
        yield
        return
    handles = []
    for index, layer in enumerate(model.model.layers):
        passed = skip[:, index].view(-1, 1, 1)
        if not passed.any():
            continue

        def bypass(_: Any, args: tuple, output: Any, passed: torch.Tensor = passed) -> Any:  # type: ignore[type-arg]
            hidden = output[0] if isinstance(output, tuple) else output
            mixed = torch.where(passed, args[0], hidden)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        handles.append(layer.register_forward_hook(bypass))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@torch.inference_mode()
def plain_steps(
    model: Any,
    layout: SpeechTokenLayout,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingParams,
    skip: torch.Tensor | None = None,
    row_seeds: Sequence[int] | None = None,
    passes: int = 1,
    mix: Mix | None = None,
) -> Iterator[torch.Tensor]:
    """What every row says at each step, int64 [B]; arguments as of `generation.generation_steps`."""
    device = next(model.parameters()).device
    head, bias = spoken_head(model, layout), spoken_bias(model, layout)
    ids, mask = _left_padded(prompts, layout.pad_id, device)
    rows = len(prompts) // passes
    uniforms = torch.zeros(2, rows, decoding.max_new_tokens)  # the second is for what is drawn again
    if decoding.temperature > 0:
        for row, seed in enumerate(row_seeds or range(rows)):
            uniforms[:, row] = uniforms_of(decoding.seed, seed, decoding.max_new_tokens)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = torch.full((rows, decoding.max_new_tokens), layout.num_codes, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    met = codes_met(prompts[:rows], layout).to(device) if decoding.repetition_penalty > 1 else None
    with skipping_layers(model, None if skip is None else skip.repeat(passes, 1).to(device)):
        for step in range(decoding.max_new_tokens):
            hidden = model.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits = torch.nn.functional.linear(hidden, head, bias).float()
            check_finite("logits of the model", logits)
            if mix is not None:
                logits = mix(logits)
            first, second = uniforms[:, :, step].to(device)
            if met is not None:
                logits = penalized(logits, met, decoding.repetition_penalty)
            chosen = sample(logits, decoding.temperature, decoding.top_p, first, decoding.top_k)
            if decoding.repetition_aware:
                again = ras.is_repetition(chosen, out[:, max(0, step - ras.WINDOW) : step])
                chosen = torch.where(again, sample(logits, decoding.temperature, 1.0, second), chosen)
            out[:, step] = torch.where(ended, layout.num_codes, chosen)
            if met is not None:
                met.scatter_(1, chosen.unsqueeze(1), True)
            ended |= chosen == layout.num_codes
            yield out[:, step]
            if bool(ended.all()):
                return
            said = torch.where(chosen == layout.num_codes, layout.end_id, chosen + layout.first_code_id)
            ids = said.repeat(passes).unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1
