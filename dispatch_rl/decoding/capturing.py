"""Work that is captured once and replayed, over the same buffers: CUDA graphs."""

from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UPS = 2
"""Runs before a capture: kernels are compiled, and libraries take their workspaces, outside the graph."""


class Program(Protocol):
    """Something captured."""

    def replay(self) -> None:
        """Do it again with what its buffers hold now."""


class Capturer(Protocol):
    """Captures work."""

    def capture(self, body: Callable[[], None]) -> Program:
        """Return ``body`` as it is done now, with the buffers that it reads and writes; whatever the host computes is fixed for ever."""


class CudaGraphs:
    """Captures CUDA graphs that share one pool of memory, so they are replayed one after the other.

    What a replay leaves in the pool is gone with the next one; results belong in buffers that were made outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._one = torch.zeros(1, device=device)
        self._first: Program | None = None
        """Does nothing of use: a pool that has lost its last graph takes no other, so this one stays."""

    def capture(self, body: Callable[[], None]) -> Program:
        # A capture that fails leaves its stream the current one; here the old one comes back.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            if self._first is None:
                self._first = self._captured(lambda: self._one.zero_())
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    body()
            torch.cuda.current_stream().wait_stream(self._stream)
            return self._captured(body)

    def _captured(self, body: Callable[[], object]) -> Program:
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile, such as watching the GPU, must not end the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            body()
        return graph
