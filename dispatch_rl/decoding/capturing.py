"""Work that is captured once and replayed: CUDA graphs on a GPU; elsewhere it is simply done again, over the same buffers."""

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

    def capture(self, body: Callable[[], None]) -> Program:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    body()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # What other threads do meanwhile, such as watching the GPU, must not end the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                body()
        return graph


class Reruns:
    """Does the work again: what graphs do, wherever there is no GPU."""

    def capture(self, body: Callable[[], None]) -> Program:
        body()
        return _Rerun(body)


class _Rerun:
    def __init__(self, body: Callable[[], None]) -> None:
        self.replay = body
