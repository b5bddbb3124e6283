"""Records a computation as a CUDA graph: a replay costs the host one launch instead of one per kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

Replay = Callable[[], None]


class Recorder:
    """Records computations that read and write memory at fixed addresses. One replay runs at a time.

    All graphs share one pool of temporary memory, because no replay reads what another has left there. On the CPU,
    which has no graphs, a replay is the computation itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # One stream for all recordings: libraries keep a workspace for every stream that they have seen.
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def record(self, compute: Callable[[], object]) -> Replay:
        """Record `compute`, which is also run; returns the function that replays it."""
        if self._side is None:
            return lambda: (compute(), None)[1]
        # The first run is not recorded: in first calls libraries choose and load kernels, and allocate.
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            compute()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are recorded: other threads (a heartbeat, a transport) may also call CUDA.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"):
            compute()
        return graph.replay
