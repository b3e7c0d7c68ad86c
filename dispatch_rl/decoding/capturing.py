"""Work that is captured once and replayed, over the same buffers: CUDA graphs."""

from collections.abc import Callable
from contextlib import suppress
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
        with torch.inference_mode(False):
            self._one = torch.zeros(1, device=device)
        self._first: Program | None = None
        """Does nothing of use: a pool that has lost its last graph takes no other, so this one stays."""
        self._failed: list[torch.cuda.CUDAGraph] = []
        """Captures that came to nothing; an allocator may still ask them what it is to record."""

    def capture(self, body: Callable[[], None]) -> Program:
        # A capture that fails leaves its stream the current one; here the old one comes back.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream(self._device)):
            if self._first is None:
                self._begin_pool()
            self._warm_up(body)
            try:
                return self._captured(body)
            except Exception:
                # Torch goes on taking random numbers for part of what failed until a capture comes to its end.
                with suppress(Exception):
                    self._begin_pool()
                raise

    def _begin_pool(self) -> None:
        # What the first capture makes for random numbers must be good for captures outside of inference too.
        with torch.inference_mode(False):
            self._first = self._captured(lambda: self._one.zero_())

    def _warm_up(self, body: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    body()
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _captured(self, body: Callable[[], object]) -> Program:
        graph = torch.cuda.CUDAGraph()
        try:
            # What other threads do meanwhile, such as watching the GPU, must not end the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                body()
        except Exception:
            self._give_up(graph)
            raise
        return graph

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Leave the pool to the graphs that have it, and go on with another, if torch (2.11 at least) still records into it."""
        try:
            torch._C._cuda_endAllocateToPool(self._one.get_device(), self._pool)
        except RuntimeError:
            return  # torch has ended it itself
        self._failed.append(graph)
        self._pool, self._first = torch.cuda.graph_pool_handle(), None
