"""Batched generation of speech codes: END for each row, finished rows replaced by waiting ones, rows that skip layers.

Sampling is restricted to the ids that can be spoken (codes and END), so no text token is ever emitted. Rows may
each skip a set of decoder layers: that is how all leave-one-out models of a scoring batch run as one generation.
Llama and Qwen2 are decoded by `LeanModel`; any other model, and one with hooks, by its own forward (`plain.py`).
Legend: B rows, T tokens, V spoken vocabulary (codes + END), L decoder layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from slimtts.decoding.heads import spoken_bias, spoken_head, trained_head
from slimtts.decoding.lean_pool import LeanPool, lean_pool
from slimtts.decoding.plain import plain_steps, skipping_layers
from slimtts.decoding.row_slots import Ask, Generated, Mix, RowSlots, generated, runs_ahead
from slimtts.decoding.sampling import codes_met, penalized, sample
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout

__all__ = [
    "Generated", "Mix", "codes_met", "generate", "generate_batch", "generate_rows", "generation_steps", "in_batches",
    "penalized", "sample", "skipping_layers", "spoken_bias", "spoken_head", "trained_head",
]  # fmt: skip

REFILL_SHARE = 1 / 8  # of the rows that must be free before prompts are computed for them: fewer make small matrices
DROP_SHARE = 1 / 4  # of the rows that must be free before the batch is made smaller: less is not worth the copy
COLUMN_STEP = 128  # columns of kept slots are a multiple, so that calls of similar length share them


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

    Arguments as of `generate_batch`. Closing the iterator stops the generation. On CUDA steps arrive a few at a time,
    on the host.
    """
    pool = lean_pool(model, layout)
    if pool is None:
        yield from plain_steps(model, layout, prompts, decoding, skip, row_seeds, passes, mix)
        return
    asks = _asks(prompts, len(prompts) // passes, skip, row_seeds, passes)
    with _slots(pool, layout, decoding, asks, len(asks), mix) as slots:
        slots.admit(asks)
        given = 0
        while given < decoding.max_new_tokens:
            slots.advance()
            seen = slots.seen()
            if seen is None:
                continue
            for step in range(given, min(seen.told[0], decoding.max_new_tokens)):
                said = seen.said[:, step].clone()
                yield said
                if bool((said == layout.num_codes).all()):
                    return
            given = seen.told[0]


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
    with the code that was chosen from it, and skip the same layers, `skip` [B, L].
    """
    rows = len(prompts) // passes
    return generate_rows(model, layout, _asks(prompts, rows, skip, row_seeds, passes), decoding, rows, mix)


def generate(
    model: Any,
    layout: SpeechTokenLayout,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingParams,
    skip: torch.Tensor | None = None,
) -> list[Generated]:
    """Like `generate_batch`, at most `batch_rows` at a time, prompts of similar length together."""
    return generate_rows(model, layout, _asks(prompts, len(prompts), skip, None, 1), decoding, decoding.batch_rows)


def generate_rows(
    model: Any,
    layout: SpeechTokenLayout,
    asks: Sequence[Ask],
    decoding: DecodingParams,
    rows_together: int,
    mix: Mix | None = None,
) -> list[Generated]:
    """What each ask is continued with, in their order; the next one takes the place of one that has ended.

    The longest prompts begin, so that the last ones to end are short.
    """
    if not asks:
        return []
    pool = lean_pool(model, layout)
    if pool is None:
        return _generate_plainly(model, layout, asks, decoding, rows_together, mix)
    waiting = deque(sorted(asks, key=lambda ask: (-len(ask.prompts[0]), ask.index)))
    made: dict[int, Generated] = {}
    with _slots(pool, layout, decoding, asks, min(rows_together, len(asks)), mix) as slots:
        while len(made) < len(asks):
            free = len(slots.free)
            if waiting and free >= max(1, REFILL_SHARE * slots.rows):
                slots.admit([waiting.popleft() for _ in range(min(free, len(waiting)))])
            elif not waiting and not slots.ahead and free >= DROP_SHARE * slots.rows > 0:
                slots.drop_free()
            slots.advance()
            made |= {ask.index: row for ask, row in slots.collect()}
    return [made[ask.index] for ask in asks]


def _asks(
    prompts: Sequence[Sequence[int]],
    rows: int,
    skip: torch.Tensor | None,
    row_seeds: Sequence[int] | None,
    passes: int,
) -> list[Ask]:
    return [
        Ask(
            row,
            tuple(prompts[k * rows + row] for k in range(passes)),
            row if row_seeds is None else row_seeds[row],
            None if skip is None else skip[row],
        )
        for row in range(rows)
    ]


def _slots(
    pool: LeanPool,
    layout: SpeechTokenLayout,
    decoding: DecodingParams,
    asks: Sequence[Ask],
    rows: int,
    mix: Mix | None,
) -> AbstractContextManager[RowSlots]:
    """Slots that fit all asks; kept for later calls where making them costs more than their memory."""
    passes, skips = len(asks[0].prompts), any(ask.skip is not None for ask in asks)
    columns = max(len(prompt) for ask in asks for prompt in ask.prompts) + decoding.max_new_tokens
    columns = -(-columns // COLUMN_STEP) * COLUMN_STEP
    key: Hashable = None
    ahead = runs_ahead(pool.lean.embeddings.device)
    if mix is None and (ahead or (rows == 1 and not skips)):
        key = (rows, columns, passes, decoding, skips)
    return pool.borrowed(key, lambda: RowSlots(pool.lean, layout, decoding, rows, columns, passes, mix, skips))


def _generate_plainly(
    model: Any,
    layout: SpeechTokenLayout,
    asks: Sequence[Ask],
    decoding: DecodingParams,
    rows_together: int,
    mix: Mix | None,
) -> list[Generated]:
    passes = len(asks[0].prompts)

    def speak(rows: list[int]) -> list[Generated]:
        chosen = [asks[row] for row in rows]
        prompts = [ask.prompts[k] for k in range(passes) for ask in chosen]
        skip = None if chosen[0].skip is None else torch.stack([ask.skip for ask in chosen if ask.skip is not None])
        seeds = [ask.seed for ask in chosen]
        steps = list(plain_steps(model, layout, prompts, decoding, skip, seeds, passes, mix))
        return [generated(codes, layout.num_codes) for codes in torch.stack(steps, dim=1).tolist()]

    return in_batches([len(ask.prompts[0]) for ask in asks], rows_together, speak)


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
