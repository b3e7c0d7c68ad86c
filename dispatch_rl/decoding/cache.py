"""A key-value cache that rolls back in place and never copies the context."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GRANULE = 512
"""Capacities are multiples of this (tokens), so that texts of similar length share a buffer."""


class _Layer(CacheLayerMixin):
    """One layer's keys and values in a buffer ``[1, heads, capacity, head_dim]``; the first ``length`` positions are valid."""

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0
        self.capacity = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers in the shape and type that the model produces."""
        self.keys = _buffer(key_states, self.capacity)
        self.values = _buffer(value_states, self.capacity)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the valid ones and return views of all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            raise IndexError(f"the cache holds {self.keys.shape[2]} tokens, {end} are needed")
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self, *_: Any) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        queries = query_length if isinstance(query_length, int) else len(query_length)
        return self.length + queries, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20


def _buffer(states: Tensor, capacity: int) -> Tensor:
    return torch.empty((*states.shape[:2], capacity, states.shape[3]), dtype=states.dtype, device=states.device)


class RollbackCache(Cache):
    """What a model has read so far. ``length`` may be lowered at will; what lies beyond is overwritten by the next forward."""

    def __init__(self, layers: int) -> None:
        self._rollback_layers = [_Layer() for _ in range(layers)]
        super().__init__(layers=list(self._rollback_layers))

    @property
    def length(self) -> int:
        """Number of valid positions (tokens)."""
        return self._rollback_layers[0].length

    @length.setter
    def length(self, tokens: int) -> None:
        if not 0 <= tokens <= self.length:
            raise ValueError(f"cannot roll back from {self.length} to {tokens} tokens")
        for layer in self._rollback_layers:
            layer.length = tokens

    def reserve(self, capacity: int) -> None:
        """Empty the cache and make room for ``capacity`` tokens; buffers that are large enough are kept."""
        for layer in self._rollback_layers:
            layer.length = 0
            if capacity > layer.capacity:
                layer.capacity = -(-capacity // _GRANULE) * _GRANULE
                layer.keys = layer.values = None
                layer.is_initialized = False

    def select(self, rows: Tensor) -> None:
        """Keep only the ``rows`` of a batch (indices)."""
        for layer in self._rollback_layers:
            assert layer.keys is not None
            assert layer.values is not None
            there = rows.to(layer.keys.device)  # a model may be spread over devices
            layer.keys, layer.values = layer.keys[there], layer.values[there]

    def move(self, source: int, place: int) -> None:
        """Copy what was read at position ``source`` to ``place``."""
        for layer in self._rollback_layers:
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys[:, :, place], layer.values[:, :, place] = layer.keys[:, :, source], layer.values[:, :, source]

    def chosen(self, rows: Tensor, room: int) -> "RollbackCache":
        """Return a copy of some ``rows`` of a batch (indices, which may repeat) with room for so many further tokens."""
        copy = RollbackCache(len(self._rollback_layers))
        copy.reserve(self.length + room)
        for layer, mine in zip(copy._rollback_layers, self._rollback_layers, strict=True):
            assert mine.keys is not None
            assert mine.values is not None
            layer.update(mine.keys[rows, :, : self.length], mine.values[rows, :, : self.length])
        return copy

    def addresses(self) -> list[int]:
        """Return where the buffers lie in memory; empty before the first forward."""
        return [layer.keys.data_ptr() for layer in self._rollback_layers if layer.keys is not None]
