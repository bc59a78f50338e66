"""Batched generation of speech codes: one key/value cache, END for each row, and rows that skip layers.

Sampling is restricted to the ids that can be spoken (codes and END), so no text token is ever emitted. Rows may
each skip a set of decoder layers: that is how all leave-one-out models of a scoring batch run as one generation.
Legend: B rows, T tokens, V spoken vocabulary (codes + END), L decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from slimtts.decoding import ras
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout

# Logits of all passes [passes B, V] -> logits of the rows [B, V].
Mix = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Generated:
    """Codes of one row, and whether the model ended it by itself."""

    codes: tuple[int, ...]
    ended: bool


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


def sample(
    logits: torch.Tensor, temperature: float, top_p: float, uniform: torch.Tensor, top_k: int = 0
) -> torch.Tensor:
    """One id a row from logits [B, V]; greedy at temperature 0. `uniform` [B] in 0..1 decides for each row.

    `top_p` and `top_k` (unless 0) both limit the ids to choose among, and both look at the whole distribution.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = torch.softmax(logits / temperature, -1).sort(-1, descending=True)
    cumulative = probabilities.cumsum(-1)
    probabilities[cumulative - probabilities >= top_p] = 0
    if top_k:
        probabilities[:, top_k:] = 0
    cumulative = probabilities.cumsum(-1)
    rank = (cumulative < uniform.unsqueeze(-1) * cumulative[:, -1:]).sum(-1, keepdim=True)
    return order.gather(-1, rank.clamp(max=logits.shape[-1] - 1)).squeeze(-1)


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


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@torch.inference_mode()
def generation_steps(
    model: Any,
    layout: SpeechTokenLayout,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingParams,
    skip: torch.Tensor | None = None,
    row_seeds: Sequence[int] | None = None,
    passes: int = 1,
    mix: Mix | None = None,
) -> Iterator[torch.Tensor]:
    """What every row says at each step, int64 [B]: a code, or `num_codes` from its END on; until all rows ended.

    Arguments as of `generate_batch`. Closing the iterator stops the generation.
    """
    device = next(model.parameters()).device
    head, bias = spoken_head(model, layout), spoken_bias(model, layout)
    ids, mask = _left_padded(prompts, layout.pad_id, device)
    rows = len(prompts) // passes
    uniforms = torch.zeros(2, rows, decoding.max_new_tokens)  # the second is for what is drawn again
    if decoding.temperature > 0:
        for row, seed in enumerate(row_seeds or range(rows)):
            generator = torch.Generator().manual_seed(decoding.seed * 1_000_003 + seed)
            uniforms[:, row] = torch.rand(2, decoding.max_new_tokens, generator=generator)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = torch.full((rows, decoding.max_new_tokens), layout.num_codes, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    met = codes_met(prompts[:rows], layout).to(device) if decoding.repetition_penalty > 1 else None
    with skipping_layers(model, None if skip is None else skip.to(device)):
        for step in range(decoding.max_new_tokens):
            hidden = model.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits = torch.nn.functional.linear(hidden, head, bias).float()
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


def generate_batch(
    model: Any,
    layout: SpeechTokenLayout,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingParams,
    skip: torch.Tensor | None = None,
    row_seeds: Sequence[int] | None = None,
    passes: int = 1,
    mix: Mix | None = None,
) -> list[Generated]:
    """Continues every prompt until END or `max_new_tokens`.

    `row_seeds` [B] seed each row's sampling, so that a row's result does not depend on its batch. With several
    `passes`, prompt k B + b is pass k of row b: `mix` makes one distribution of a row's passes, and all of them go on
    with the code that was chosen from it.
    """
    steps = list(generation_steps(model, layout, prompts, decoding, skip, row_seeds, passes, mix))
    result = []
    for codes in torch.stack(steps, dim=1).tolist():  # [B, T]
        ended = layout.num_codes in codes
        result.append(Generated(tuple(codes[: codes.index(layout.num_codes)] if ended else codes), ended))
    return result


def generate(
    model: Any,
    layout: SpeechTokenLayout,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingParams,
    skip: torch.Tensor | None = None,
) -> list[Generated]:
    """Like `generate_batch`, in batches of at most `batch_rows`, prompts of similar length together."""

    def speak(rows: list[int]) -> list[Generated]:
        chosen = None if skip is None else skip[rows]
        return generate_batch(model, layout, [prompts[i] for i in rows], decoding, chosen, rows)

    return in_batches([len(p) for p in prompts], decoding.batch_rows, speak)


def in_batches(
    lengths: Sequence[int], rows_together: int, speak: Callable[[list[int]], list[Generated]]
) -> list[Generated]:
    """What `speak` makes of the indices of `lengths`, called with those of similar length together; in their order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    made: dict[int, Generated] = {}
    for start in range(0, len(order), rows_together):
        rows = order[start : start + rows_together]
        made |= dict(zip(rows, speak(rows), strict=True))
    return [made[i] for i in range(len(lengths))]
