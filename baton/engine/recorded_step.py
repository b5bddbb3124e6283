"""A computation recorded as a CUDA graph: on the host a replay costs one launch instead of one per kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

Replay = Callable[[], None]


class Recorder:
    """Records computations that read and write memory of fixed addresses, and are replayed one at a time.

    All graphs draw their temporary memory from one pool: nothing of one replay is read in the next. On the CPU, which
    has no graphs, a replay is the computation itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # One for all recordings: libraries keep a workspace for every stream that they have seen.
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def record(self, compute: Callable[[], object]) -> Replay:
        if self._side is None:
            return lambda: (compute(), None)[1]
        # Once without recording: libraries choose and load kernels, and allocate, in their first calls.
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            compute()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a heartbeat, a transport) may call CUDA too: only this one's calls are recorded.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            compute()
        return graph.replay
