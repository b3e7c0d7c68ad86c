"""Key-value caches that roll back in place and never copy the context: one for transformers' forward passes, one for ours."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from dispatch_rl.kernels.operations import Operations
from dispatch_rl.kernels.rotate_and_store import HeadNorms

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
            _check_nothing_lost(self.length)
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


def _check_rollback(length: int, tokens: int) -> None:
    if not 0 <= tokens <= length:
        raise ValueError(f"cannot roll back from {length} to {tokens} tokens")


def _check_nothing_lost(length: int) -> None:
    """Refuse to go on with a new buffer where tokens were read into another: in their place would stand anything."""
    if length:
        raise RuntimeError(f"the cache has lost the {length} tokens that it held")


def _rounded_up(capacity: int) -> int:
    return -(-capacity // _GRANULE) * _GRANULE


def _buffer(states: Tensor, capacity: int) -> Tensor:
    return torch.empty((*states.shape[:2], capacity, states.shape[3]), dtype=states.dtype, device=states.device)


class RollbackCache(Cache):
    """What a model has read so far that runs through transformers. What lies beyond ``length`` is overwritten by the next forward."""

    def __init__(self, layers: int) -> None:
        self._rollback_layers = [_Layer() for _ in range(layers)]
        super().__init__(layers=list(self._rollback_layers))

    @property
    def length(self) -> int:
        """Number of valid positions (tokens)."""
        return self._rollback_layers[0].length

    @length.setter
    def length(self, tokens: int) -> None:
        _check_rollback(self.length, tokens)
        for layer in self._rollback_layers:
            layer.length = tokens

    def reserve(self, capacity: int) -> None:
        """Empty the cache and make room for ``capacity`` tokens; buffers that are large enough are kept."""
        for layer in self._rollback_layers:
            layer.length = 0
            if capacity > layer.capacity:
                layer.capacity = _rounded_up(capacity)
                layer.keys = layer.values = None
                layer.is_initialized = False

    @property
    def capacity(self) -> int:
        """Number of positions that there is room for (tokens)."""
        return self._rollback_layers[0].capacity

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


class Place(NamedTuple):
    """Where one layer's keys and values are."""

    fresh: Tensor
    """Where those of the tokens that are being read belong, keys before values ``[texts, 2 * heads, new, head_dim]``."""
    keys: Tensor
    """Of all tokens, these included ``[texts, heads, tokens, head_dim]``."""
    values: Tensor


class StaticPlace(NamedTuple):
    """Where one layer's keys and values are, told on the device alone, so that a captured graph finds them wherever they are by then."""

    buffer: Tensor
    """Keys before values ``[2 * heads, capacity, head_dim]``."""
    where: Tensor
    """Positions of the tokens that are being read, int64 ``[tokens]``."""
    length: Tensor
    """Number of tokens in the cache, these included, int64 ``[]``."""
    visible: Tensor | None
    """Which of these tokens each of them sees ``[tokens, tokens]``; None means itself and those before."""
    operations: Operations
    """Of the device."""

    def attend(self, qkv: Tensor, angles: tuple[Tensor, Tensor], norms: HeadNorms | None) -> Tensor:
        """Turn queries and keys, write keys and values and return what the queries see ``[tokens, heads, head_dim]``.

        The arguments are those of :func:`dispatch_rl.kernels.rotate_and_store.rotate_and_store`.
        """
        q = self.operations.rotate_and_store(qkv, *angles, self.buffer, self.where, norms)
        keys, values = self.buffer.chunk(2)
        return self.operations.attention(q, keys, values, self.length, self.visible)


class StackedCache:
    """What a model that runs through our own forward pass has read so far: all layers in one buffer, so that little is done per layer.

    Args:
        layers: Layers of the model.
        heads: Heads that have keys and values.
        head_dim: Size of a key.
        like: Has the type and the device of the keys.
    """

    def __init__(self, layers: int, heads: int, head_dim: int, like: Tensor) -> None:
        self._layers, self._heads, self._head_dim, self._like = layers, heads, head_dim, like
        self._length = self._capacity = 0
        self._buffer: Tensor | None = None
        """Keys before values ``[layers, texts, 2 * heads, capacity, head_dim]``; the first ``length`` positions are valid."""

    @property
    def length(self) -> int:
        """Number of valid positions (tokens)."""
        return self._length

    @length.setter
    def length(self, tokens: int) -> None:
        _check_rollback(self._length, tokens)
        self._length = tokens

    def reserve(self, capacity: int) -> None:
        """Empty the cache and make room for ``capacity`` tokens; a buffer that is large enough is kept."""
        self._length = 0
        if capacity > self._capacity:
            self._capacity = _rounded_up(capacity)
            self._buffer = None

    @property
    def capacity(self) -> int:
        """Number of positions that there is room for (tokens)."""
        return self._capacity

    @property
    def buffer(self) -> Tensor | None:
        """Keys before values ``[layers, texts, 2 * heads, capacity, head_dim]``; None before the first forward."""
        return self._buffer

    def allocate(self, texts: int = 1) -> Tensor:
        """Return the buffer, made if it is not there."""
        if self._buffer is None:
            _check_nothing_lost(self._length)
            self._buffer = self._like.new_empty((self._layers, texts, 2 * self._heads, self._capacity, self._head_dim))
        return self._buffer

    def extend(self, texts: int, new: int) -> list[Place]:
        """Make ``new`` more positions valid and return every layer's place; whoever asks fills it."""
        buffer, begin = self.allocate(texts), self._length
        self.lengthen(new)
        fresh = buffer.narrow(3, begin, new)
        keys, values = buffer.narrow(3, 0, self._length).chunk(2, dim=2)
        return list(map(Place, fresh.unbind(0), keys.unbind(0), values.unbind(0)))

    def lengthen(self, new: int) -> None:
        """Make ``new`` more positions valid, which a captured graph fills."""
        end = self._length + new
        if end > self._capacity:
            raise IndexError(f"the cache holds {self._capacity} tokens, {end} are needed")
        self._length = end

    def select(self, rows: Tensor) -> None:
        """Keep only the ``rows`` of a batch (indices)."""
        assert self._buffer is not None
        for layer in self._buffer:  # one by one: a copy of the whole might not fit
            layer[: len(rows)] = layer[rows]
        self._buffer = self._buffer[:, : len(rows)]

    def move(self, source: int, place: int) -> None:
        """Copy what was read at position ``source`` to ``place``."""
        assert self._buffer is not None
        self._buffer[..., place, :] = self._buffer[..., source, :]

    def chosen(self, rows: Tensor, room: int) -> "StackedCache":
        """Return a copy of some ``rows`` of a batch (indices, which may repeat) with room for so many further tokens."""
        assert self._buffer is not None
        copy = StackedCache(self._layers, self._heads, self._head_dim, self._like)
        copy.reserve(self._length + room)
        for place, layer in zip(copy.extend(len(rows), self._length), self._buffer, strict=True):
            place.fresh.copy_(layer[rows, :, : self._length])
        return copy

    def addresses(self) -> list[int]:
        """Return where the buffer lies in memory; empty before the first forward."""
        return [] if self._buffer is None else [self._buffer.data_ptr()]


AnyCache = RollbackCache | StackedCache
"""They have the same methods, but for how they are filled."""
