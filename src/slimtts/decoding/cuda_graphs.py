"""A decode step as CUDA graphs, one for each width of attention: one launch a token instead of hundreds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

# CUDA records one graph at a time in a process, and nobody may empty the allocator's cache meanwhile.
_RECORDING = threading.Lock()
WARM_UP_STEPS = 2  # libraries choose kernels and workspaces in the first calls, which must not be recorded


class StepGraphs:
    """Records `step(width)` at the first use of each width and replays it then.

    The step reads and writes only tensors that stay where they are; `state` are those that a rehearsal must not change.
    """

    def __init__(self, step: Callable[[int], None], state: Sequence[torch.Tensor]) -> None:
        self._step, self._state = step, state
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: tuple[int, int] | None = None

    def run(self, width: int) -> None:
        """One step."""
        if width not in self._graphs:
            with _RECORDING:
                self._graphs[width] = self._record(width)
        self._graphs[width].replay()

    def _record(self, width: int) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self._state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_STEPS):
                self._step(width)
        torch.cuda.current_stream().wait_stream(aside)
        for tensor, value in zip(self._state, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are recorded; others may load or decode a model meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._step(width)
        self._pool = graph.pool()
        return graph
