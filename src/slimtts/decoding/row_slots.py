"""Rows that speak together, a code of each at every step: END for each row, and a finished row's place for the next.

All state is on the device, and no step asks the host anything. On a CPU the host looks after each step; on CUDA steps
are replayed graphs, and the host reads what an earlier chunk of steps said while the next one runs.
Legend: R rows, P passes of a row (prompts that share its codes), lanes P R (pass k of row r is k R + r), V spoken
vocabulary (codes + END), L layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slimtts.decoding import ras
from slimtts.decoding.cuda_graphs import StepGraphs
from slimtts.decoding.lean_model import LeanModel, StaticCache
from slimtts.decoding.sampling import codes_met, penalized, sample, uniforms_of
from slimtts.model_weights import check_finite
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout

# Logits of all lanes [P R, V] -> logits of the rows [R, V].
Mix = Callable[[torch.Tensor], torch.Tensor]
CHUNK = 4  # steps on CUDA between two looks at who has ended; more waste steps behind an END
WIDTH_STEP = 256  # columns: attention on CUDA reads multiples of it, a graph each
COLUMN_MULTIPLE = 16  # attention kernels on CUDA read masks of such widths; others are padded in every layer
LEAST_REUSED = 8  # tokens of a prompt that are worth more than the call that saves them


def runs_ahead(device: torch.device) -> bool:
    """Whether steps go on before the host knows what the last ones said: where a step is over before a look at it."""
    return device.type == "cuda"


@dataclass(frozen=True)
class Ask:
    """What a row shall continue: token ids for each pass, its sampling's seed, the layers it skips (bool [L])."""

    index: int
    prompts: tuple[Sequence[int], ...]
    seed: int
    skip: torch.Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Codes of one row, and whether the model ended it by itself."""

    codes: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Seen:
    """What the host knows: `said` [R, steps] and `ended` [R] after `told` steps of each row's ask."""

    asks: tuple[Ask | None, ...]
    told: tuple[int, ...]
    said: torch.Tensor
    ended: torch.Tensor
    arrived: Any = None  # CUDA event


class RowSlots:
    """Places for `rows` rows of at most `columns` tokens each; made for one way of decoding."""

    def __init__(
        self,
        lean: LeanModel,
        layout: SpeechTokenLayout,
        decoding: DecodingParams,
        rows: int,
        columns: int,
        passes: int = 1,
        mix: Mix | None = None,
        skips: bool = False,
    ) -> None:
        self._lean, self._layout, self._decoding = lean, layout, decoding
        self._passes, self._mix = passes, mix
        self._device = lean.embeddings.device
        self.ahead = runs_ahead(self._device)
        self._chunk = CHUNK if self.ahead else 1
        lanes, steps = rows * passes, decoding.max_new_tokens
        with torch.inference_mode(), self._device:
            columns = -(-(columns + 2 * self._chunk) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
            self._cache = StaticCache(lean, lanes, columns)
            self._ids = torch.zeros(lanes, dtype=torch.long)
            self._positions = torch.zeros(lanes, dtype=torch.long)
            self._told = torch.zeros(rows, dtype=torch.long)
            self._said = torch.zeros(rows, steps + 2 * self._chunk, dtype=torch.long)
            self._ended = torch.ones(rows, dtype=torch.bool)
            self._uniforms = torch.zeros(2, rows, steps + 2 * self._chunk)  # the second is for what is drawn again
            self._met = torch.zeros(rows, layout.num_codes + 1, dtype=torch.bool)
            self._passed = torch.zeros(len(lean.layers), lanes, 1, dtype=torch.bool) if skips else None
        # Which layers are skipped by anybody; a recorded step must be right for all that come later.
        self._skipped = [self.ahead] * len(lean.layers)
        self._asks: list[Ask | None] = [None] * rows
        self._at, self._told_here = [0] * lanes, [0] * rows
        self._held: list[int] = []  # prompt tokens whose keys and values a single row has from an earlier call
        self._on_the_way: deque[Seen] = deque()
        self._graphs: StepGraphs | None = None

    @property
    def rows(self) -> int:
        """Places."""
        return len(self._asks)

    @property
    def free(self) -> list[int]:
        """Places that speak for nobody."""
        return [slot for slot, ask in enumerate(self._asks) if ask is None]

    @torch.inference_mode()
    def clear(self) -> None:
        """Forgets all rows, but for the prompt that a single row has computed."""
        self._asks = [None] * self.rows
        self._on_the_way.clear()
        self._positions.zero_()
        self._told.zero_()
        self._at = [0] * len(self._at)

    def forget_prompt(self) -> None:
        """The next prompt is computed as a whole, whatever was said before."""
        self._held = []

    @torch.inference_mode()
    def admit(self, asks: Sequence[Ask]) -> None:
        """Puts asks into free places and computes their prompts, but for the last token: the next step begins there."""
        slots, rows = self.free[: len(asks)], self.rows
        lanes = [k * rows + slot for k in range(self._passes) for slot in slots]
        prompts = [ask.prompts[k] for k in range(self._passes) for ask in asks]
        self._prefill(lanes, prompts, [ask.skip for _ in range(self._passes) for ask in asks])
        there = torch.tensor(lanes, device=self._device)
        self._ids[there] = torch.tensor([prompt[-1] for prompt in prompts], device=self._device)
        self._positions[there] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._device)
        own = torch.tensor(slots, device=self._device)
        self._told[own] = 0
        self._ended[own] = False
        self._said[own] = self._layout.num_codes
        if self._decoding.temperature > 0:
            steps = self._decoding.max_new_tokens
            drawn = torch.stack([uniforms_of(self._decoding.seed, ask.seed, steps) for ask in asks], 1)
            self._uniforms[:, own, :steps] = drawn.to(self._device)
        if self._decoding.repetition_penalty > 1:
            self._met[own] = codes_met([ask.prompts[0] for ask in asks], self._layout).to(self._device)
        for lane, prompt in zip(lanes, prompts, strict=True):
            self._at[lane] = len(prompt) - 1
        for slot, ask in zip(slots, asks, strict=True):
            self._asks[slot], self._told_here[slot] = ask, 0

    def _prefill(
        self, lanes: list[int], prompts: Sequence[Sequence[int]], skips: Sequence[torch.Tensor | None]
    ) -> None:
        reuses = self.rows == self._passes == 1 and self._passed is None
        start = _shared(self._held, prompts[0]) if reuses else 0
        self._held = []
        there, skip = torch.tensor(lanes, device=self._device), None
        if self._passed is not None:
            nobody = torch.zeros(len(self._skipped), dtype=torch.bool)
            skip = torch.stack([nobody if one is None else one.to(nobody) for one in skips]).to(self._device)
            self._passed[:, there] = skip.t().unsqueeze(-1)
            if not self.ahead:
                self._skipped = self._passed.flatten(1).any(1).tolist()
        longest = max(map(len, prompts)) - 1
        if longest > start:
            ids = torch.full((len(prompts), longest - start), self._layout.pad_id)
            for row, prompt in enumerate(prompts):
                ids[row, : len(prompt) - 1 - start] = torch.tensor(prompt[start:-1])
            self._lean.prefill(ids.to(self._device), self._cache, there, start, skip)
        if reuses:
            self._held = list(prompts[0][:-1])

    def _step(self, width: int, level: bool) -> None:
        """The next code of every row; on the device alone."""
        end, decoding = self._layout.num_codes, self._decoding
        passed = None
        if self._passed is not None:
            passed = [rows if some else None for rows, some in zip(self._passed, self._skipped, strict=True)]
        hidden = self._lean.step(self._ids, self._positions, self._cache, width, level, passed)
        logits = self._lean.logits(hidden)
        if not self.ahead:  # a recorded step cannot ask; models for CUDA are asked where they are placed there
            check_finite("logits of the model", logits)
        if self._mix is not None:
            logits = self._mix(logits)
        if decoding.repetition_penalty > 1:
            logits = penalized(logits, self._met, decoding.repetition_penalty)
        if decoding.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            first, second = self._uniforms.gather(2, self._told.expand(2, -1).unsqueeze(2)).squeeze(2)
            chosen = sample(logits, decoding.temperature, decoding.top_p, first, decoding.top_k)
            if decoding.repetition_aware:
                before = self._told[:, None] - torch.arange(1, ras.WINDOW + 1, device=self._device)
                recent = self._said.gather(1, before.clamp(min=0)).masked_fill(before < 0, -1)
                again = ras.is_repetition(chosen, recent)
                chosen = torch.where(again, sample(logits, decoding.temperature, 1.0, second), chosen)
        said = chosen.masked_fill(self._ended, end)
        self._said.scatter_(1, self._told[:, None], said[:, None])
        if decoding.repetition_penalty > 1:
            self._met.scatter_(1, chosen[:, None], True)
        ends = chosen == end
        self._ended.logical_or_(ends)
        ids = (chosen + self._layout.first_code_id).masked_fill_(ends, self._layout.end_id)
        self._ids.copy_(ids if self._passes == 1 else ids.repeat(self._passes))
        self._positions.add_(1)
        self._told.add_(1)

    @torch.inference_mode()
    def advance(self) -> int:
        """A code more of every row, or `CHUNK` codes when steps run ahead; gives how many."""
        limit = self._decoding.max_new_tokens
        if any(ask is None and told >= limit for ask, told in zip(self._asks, self._told_here, strict=True)):
            self._rest()
        for _ in range(self._chunk):
            furthest = max(self._at)
            if self.ahead:
                width = -(-(furthest + 1) // WIDTH_STEP) * WIDTH_STEP
                self._replay(min(width, self._cache.memory.shape[4]))
            else:
                self._step(furthest + 1, furthest == min(self._at))
            self._at = [position + 1 for position in self._at]
        self._told_here = [told + self._chunk for told in self._told_here]
        self._on_the_way.append(self._look())
        return self._chunk

    def _replay(self, width: int) -> None:
        if self._device.type != "cuda":
            self._step(width, False)
            return
        if self._graphs is None:
            state = [self._ids, self._positions, self._told, self._said, self._ended, self._met]
            self._graphs = StepGraphs(lambda columns: self._step(columns, False), state)
        self._graphs.run(width)

    def _look(self) -> Seen:
        asks, told = tuple(self._asks), tuple(self._told_here)
        if not self.ahead:
            return Seen(asks, told, self._said, self._ended)
        on_cuda = self._device.type == "cuda"
        said, ended = (
            torch.empty(state.shape, dtype=state.dtype, pin_memory=on_cuda).copy_(state, non_blocking=True)
            for state in (self._said, self._ended)
        )
        arrived = torch.cuda.Event() if on_cuda else None
        if arrived is not None:
            arrived.record()
        return Seen(asks, told, said, ended, arrived)

    def seen(self) -> Seen | None:
        """What the host knows by now: all of it, or, when steps run ahead, what the last chunk but one left."""
        if self.ahead and len(self._on_the_way) < 2:
            return None
        seen = self._on_the_way.popleft()
        if seen.arrived is not None:
            seen.arrived.synchronize()
        return seen

    def collect(self) -> list[tuple[Ask, Generated]]:
        """Rows that are known to be finished; their places become free."""
        seen = self.seen()
        if seen is None:
            return []
        limit, done = self._decoding.max_new_tokens, []
        for slot, (ask, told, ended) in enumerate(zip(seen.asks, seen.told, seen.ended.tolist(), strict=True)):
            if ask is None or ask is not self._asks[slot] or not (ended or told >= limit):
                continue
            done.append((ask, generated(seen.said[slot, :limit].tolist(), self._layout.num_codes)))
            self._asks[slot] = None
        if done and len(self.free) < self.rows:
            self._rest()
        return done

    @torch.inference_mode()
    def _rest(self) -> None:
        """Free places go on computing: from the start, so that they never leave their columns."""
        free = self.free
        lanes = [k * self.rows + slot for k in range(self._passes) for slot in free]
        self._positions[torch.tensor(lanes, device=self._device)] = 0
        self._told[torch.tensor(free, device=self._device)] = 0
        for slot in free:
            self._told_here[slot] = 0
        for lane in lanes:
            self._at[lane] = 0

    @torch.inference_mode()
    def drop_free(self) -> None:
        """Goes on without the free places, which cost time on a CPU. Not for recorded steps: they know addresses."""
        kept = [slot for slot, ask in enumerate(self._asks) if ask is not None]
        lanes = [k * self.rows + slot for k in range(self._passes) for slot in kept]
        own, there = torch.tensor(kept), torch.tensor(lanes)
        self._cache.keep_rows(there)
        self._ids, self._positions = self._ids[there], self._positions[there]
        self._told, self._said, self._ended = self._told[own], self._said[own], self._ended[own]
        self._uniforms, self._met = self._uniforms[:, own], self._met[own]
        if self._passed is not None:
            self._passed = self._passed[:, there]
            self._skipped = self._passed.flatten(1).any(1).tolist()
        self._asks, self._told_here = [self._asks[slot] for slot in kept], [self._told_here[slot] for slot in kept]
        self._at = [self._at[lane] for lane in lanes]


def generated(codes: list[int], end: int) -> Generated:
    """A row's codes up to its END."""
    ended = end in codes
    return Generated(tuple(codes[: codes.index(end)] if ended else codes), ended)


def _shared(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Leading tokens of the prompt, but for its last, that are held; 0 when they are few."""
    count = 0
    for mine, theirs in zip(held, prompt[:-1], strict=False):
        if mine != theirs:
            break
        count += 1
    return count if count >= LEAST_REUSED else 0
