"""Triton kernels of :func:`dispatch_rl.kernels.attention.attention`, for one text and few queries over a long context.

There is too little to do for a program per head: the context is split, and the splits are merged. What is kept of a set ``S`` of positions
for one query and head, with scores ``s`` and values ``v``, is the largest score ``m`` and two sums over the set,

    l = sum(exp(s - m)),    a = sum(exp(s - m) v).

Disjoint sets merge by ``m = max(m_i)``, ``c_i = exp(m_i - m)``, ``l = sum over i of c_i l_i`` and ``a = sum over i of c_i a_i``.

Proof: for a position of set ``i``, ``exp(s - m) = exp(s - m_i) exp(m_i - m) = c_i exp(s - m_i)``; summed over the set, alone and with
``v``, this gives ``c_i l_i`` and ``c_i a_i``, and sums over the union are the sums over its parts. Both sides depend on the sets alone, so
tiles may be merged in any order. Of all positions, ``a / l`` is the attention, since ``m`` cancels.

A set of which the query sees nothing has ``m_i = -inf`` and ``l_i = a_i = 0``. Differences are then taken from 0 in place of ``m``, so that
``-inf - -inf`` never stands there; and as every query sees itself, the last ``m`` is finite and ``c_i = 0`` is exact.

The length is read on the device. The grid depends on shapes alone; how many tiles a split takes follows from the length, and those that get
none return at once. Scores are in units of ``log 2``, because a GPU's exponential has base 2.

In bfloat16 and float16 products are exact and sums float32; the weights are rounded to the values' type before they meet them.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.entropy_triton import OPTIONS

PROGRAMS = 256
"""How many programs the context is split for: about two for each multiprocessor (132 in an H200)."""
MOST_SPLITS = 64
"""More are not worth their merging."""
MOST_ROWS = 32
"""Queries times heads that a program takes; twice as many would not fit the registers."""
TILE_BYTES = 8_192
"""Keys that are read at a time (bytes), and as many values: with the next ones on their way, what every GPU lets a program share."""
MOST_QUERIES = 63
"""What a query sees of the new positions is held in the bits of one integer."""

_LOG2_E = log2(e)
_LAST_BIT = tl.constexpr(MOST_QUERIES)


def attention(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return what each query takes from the values, as the reference does: float32, bfloat16 or float16, the same for all.

    Strides may be any, but for those of ``head_dim``, which are 1.

    Raises:
        ValueError: There are more than 63 queries, or the elements of a head do not lie side by side.
    """
    queries, heads, head_dim = q.shape
    kv_heads, capacity, _ = keys.shape
    out = q.new_empty(q.shape) if out is None else out
    if queries > MOST_QUERIES:
        raise ValueError(f"the kernel takes up to {MOST_QUERIES} queries, not {queries}")
    if any(x.stride(-1) != 1 for x in (q, keys, values, out)):
        raise ValueError("the kernel needs the elements of a head side by side")
    group = heads // kv_heads
    width = max(16, triton.next_power_of_2(head_dim))
    rows = min(MOST_ROWS, max(16, triton.next_power_of_2(queries * group)))
    tile = max(16, TILE_BYTES // (width * q.element_size()))
    blocks = triton.cdiv(queries * group, rows)
    splits = max(1, min(PROGRAMS // (kv_heads * blocks), MOST_SPLITS, triton.cdiv(capacity, tile)))
    mixed = torch.empty((splits, queries, heads, head_dim), device=q.device)
    numbers = torch.empty((2, splits, queries, heads), device=q.device)
    among_new = q if visible is None else visible.view(torch.uint8)
    # Triton's interpreter would multiply the bits of bfloat16.
    upcast = triton.knobs.runtime.interpret and q.dtype == torch.bfloat16
    with torch.cuda.device_of(q):
        _attention_split_kernel[(kv_heads, splits, blocks)](
            q, *q.stride()[:2], keys, *keys.stride()[:2], values, *values.stride()[:2], length, among_new, *among_new.stride()[:2],
            mixed, numbers, queries, heads, splits, group, head_dim, head_dim**-0.5 * _LOG2_E, visible is not None,
            triton.next_power_of_2(queries), upcast, rows, width, tile,
            num_warps=4, num_stages=3 if q.element_size() == 2 else 2, **OPTIONS,
        )  # fmt: skip
        _attention_merge_kernel[(queries * heads,)](
            mixed, numbers, length, out, *out.stride()[:2], heads, splits, head_dim,
            triton.next_power_of_2(splits), width, tile, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return out


@triton.jit
def _share(used, splits, TILE: tl.constexpr):
    """Return how many positions every split takes: whole tiles, and as few as reach the end."""
    return tl.cdiv(tl.cdiv(used, TILE), splits) * TILE


@triton.jit
def _dot(x, y, sums, UPCAST: tl.constexpr):
    if UPCAST:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, sums, input_precision="ieee")


@triton.jit
def _seen_bits(visible, stride, column_stride, query, mine, queries, GIVEN: tl.constexpr, QUERIES: tl.constexpr):
    """Return which new positions each row sees: bit ``j`` stands for the ``j``-th."""
    one = tl.full(query.shape, 1, tl.int64)
    if GIVEN:
        column = tl.arange(0, QUERIES)[None, :]
        inside = mine[:, None] & (column < queries)
        shown = tl.load(visible + query[:, None] * stride + column * column_stride, mask=inside, other=0) != 0
        return tl.sum(shown.to(tl.int64) << column.to(tl.int64), axis=1) | (one << query.to(tl.int64))
    return (2 * one << query.to(tl.int64)) - 1


@triton.jit
def _attention_split_kernel(
    q, q_stride, q_head_stride, keys, key_head_stride, key_stride, values, value_head_stride, value_stride, length,
    visible, visible_stride, visible_column_stride, mixed, numbers, queries, heads, splits,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr, GIVEN: tl.constexpr, QUERIES: tl.constexpr, UPCAST: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A row is a query and one of the heads that share keys, so that keys are read once for all of them."""
    kv_head, split = tl.program_id(0), tl.program_id(1)
    used = tl.load(length).to(tl.int32)
    share = _share(used, splits, TILE)
    begin = split * share
    if begin >= used:
        return
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    mine = row < queries * GROUP
    query, head = tl.where(mine, row // GROUP, 0), kv_head * GROUP + row % GROUP
    unit, inside = tl.arange(0, WIDTH)[None, :], tl.arange(0, TILE)
    in_head = unit < HEAD_DIM
    x = tl.load(q + query[:, None] * q_stride + head[:, None] * q_head_stride + unit, mask=mine[:, None] & in_head, other=0.0)
    bits = _seen_bits(visible, visible_stride, visible_column_stride, query, mine, queries, GIVEN, QUERIES)
    keys += tl.cast(kv_head, tl.int64) * key_head_stride + unit
    values += tl.cast(kv_head, tl.int64) * value_head_stride + unit
    largest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, tl.minimum(begin + share, used), TILE):
        place = tl.cast(start, tl.int32) + inside
        # What lies behind the used positions may be NaN, which no weight of zero would silence.
        mask = (place < used)[:, None] & in_head
        far = place.to(tl.int64)[:, None]
        key = tl.load(keys + far * key_stride, mask=mask, other=0.0)
        value = tl.load(values + far * value_stride, mask=mask, other=0.0)
        scores = _dot(x, tl.trans(key), tl.zeros([ROWS, TILE], tl.float32), UPCAST) * SCALE
        # Beyond the new positions no bit is set.
        ahead = place - (used - queries)
        bit = tl.minimum(tl.maximum(ahead, 0), _LAST_BIT).to(tl.int64)
        seen = (ahead < 0)[None, :] | (((bits[:, None] >> bit[None, :]) & 1) != 0)
        scores = tl.where(seen, scores, -float("inf"))
        grown = tl.maximum(largest, tl.max(scores, axis=1))
        shift = tl.where(grown == -float("inf"), 0.0, grown)
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(largest - shift)
        total = shrink * total + tl.sum(weights, axis=1)
        sums = _dot(weights.to(value.dtype), value, shrink[:, None] * sums, UPCAST)
        largest = grown
    slot = (split * queries + query) * heads + head
    tl.store(mixed + slot[:, None] * HEAD_DIM + unit, sums, mask=mine[:, None] & in_head)
    tl.store(numbers + slot, largest, mask=mine)
    tl.store(numbers + splits * queries * heads + slot, total, mask=mine)


@triton.jit
def _attention_merge_kernel(
    mixed, numbers, length, out, out_stride, out_head_stride, heads, splits,
    HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program for each query and head; the splits that returned at once have written nothing."""
    row, rows = tl.program_id(0), tl.num_programs(0)
    used = tl.load(length).to(tl.int32)
    split, unit = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    there = split * _share(used, splits, TILE) < used
    slot = split * rows + row
    largest = tl.load(numbers + slot, mask=there, other=-float("inf"))
    total = tl.load(numbers + splits * rows + slot, mask=there, other=0.0)
    sums = tl.load(mixed + slot[:, None] * HEAD_DIM + unit[None, :], mask=there[:, None] & (unit < HEAD_DIM)[None, :], other=0.0)
    shrink = tl.exp2(largest - tl.max(largest, axis=0))
    result = tl.sum(shrink[:, None] * sums, axis=0) / tl.sum(shrink * total, axis=0)
    place = (row // heads) * out_stride + (row % heads) * out_head_stride + unit
    tl.store(out + place, result.to(out.dtype.element_ty), mask=unit < HEAD_DIM)
