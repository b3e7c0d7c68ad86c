"""Triton kernels of :func:`dispatch_rl.kernels.entropy.entropy`.

What is kept of a set ``S`` of logits is the largest ``m``, the second largest, and two sums over the set,

    d = sum(exp(x - m)),    s = sum((x - m) exp(x - m)).

Two disjoint sets ``1`` and ``2`` merge by ``m = max(m1, m2)``, ``c_i = exp(m_i - m)`` and

    d = sum over i of c_i d_i,    s = sum over i of c_i (s_i + (m_i - m) d_i).

Proof: in set ``i``, ``x - m = (x - m_i) + (m_i - m)`` and ``exp(x - m) = c_i exp(x - m_i)``; summing the latter over the set gives
``c_i d_i``, and summing its product with the former gives ``c_i (s_i + (m_i - m) d_i)``. The second largest of the union is the largest
of what is left when one copy of ``m`` is taken out, so of the loser's ``m_i`` and the winner's second. Both sides depend on the sets alone,
so tiles may be merged in any order. Of the whole row, with ``p = exp(x - m) / d``,

    entropy = -sum(p (x - m - log d)) = log d - s / d,    top-1 probability = 1 / d,    logsumexp = m + log d.

An impossible token has ``x - m = -inf`` and would give ``-inf * 0 = NaN``; its difference is raised to a number whose exponential is zero.
A NaN goes into ``d`` and ``s``, so into every statistic of its row but the argmax, and into no other row.

The kernels hold ``s`` and the differences in units of ``log 2``, because a GPU's exponential has base 2.

Few rows are split over the multiprocessors (two launches); many rows go to one program each (one launch).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.entropy import RowStatistics

TILE = 8_192
"""Columns of a program where rows are split: 16 KiB of bfloat16, and 19 programs for each row of Qwen2's vocabulary."""
MANY_ROWS = 256
"""From here on there are rows enough for every multiprocessor (132 in an H200) to have its own."""
LANES, DEPTH = 1_024, 8
"""A row's own program reads ``DEPTH`` runs of ``LANES`` columns at a time and keeps one state for each lane."""

OPTIONS = {"enable_fp_fusion": True}
"""Options of every launch. Triton's own default for fusing products with sums differs between its versions."""

_NEGLIGIBLE = tl.constexpr(-1e3)
_NOWHERE = tl.constexpr(2**31 - 1)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG_2 = tl.constexpr(0.6931471805599453)


def entropy(logits: Tensor, vocab: int | None = None) -> RowStatistics:
    """Return the statistics of each row of ``logits [rows, vocab]`` as the reference does; any strides, float32, bfloat16 or float16.

    The argmax of a row that holds a NaN is some valid index.
    """
    return whole_rows(logits, vocab) if len(logits) >= MANY_ROWS else split_rows(logits, vocab)


def whole_rows(logits: Tensor, vocab: int | None = None) -> RowStatistics:
    """Do it in one launch with one program for each row."""
    found = empty_statistics(logits)
    with torch.cuda.device_of(logits):
        _whole_row_kernel[(len(logits),)](
            logits, *logits.stride(), columns_of(logits, vocab), *planes(found), len(logits), LANES, DEPTH, num_warps=4, **OPTIONS
        )
    return found


def split_rows(logits: Tensor, vocab: int | None = None) -> RowStatistics:
    """Do it in two launches: one program for each tile of each row, then one for each row."""
    found, rows, columns = empty_statistics(logits), len(logits), columns_of(logits, vocab)
    splits = triton.cdiv(columns, TILE)
    partial = torch.empty((4, rows, splits), device=logits.device)
    places = torch.empty((rows, splits), dtype=torch.int32, device=logits.device)
    with torch.cuda.device_of(logits):
        _split_kernel[(rows, splits)](logits, *logits.stride(), columns, partial, places, TILE, num_warps=16, **OPTIONS)
        _merge_kernel[(rows,)](
            partial, places, *planes(found), rows, splits, columns, triton.next_power_of_2(splits), num_warps=1, **OPTIONS
        )
    return found


def columns_of(logits: Tensor, vocab: int | None) -> int:
    """Return how many columns count."""
    return logits.shape[1] if vocab is None else min(vocab, logits.shape[1])


def empty_statistics(logits: Tensor) -> RowStatistics:
    """Return statistics to be written: views of one float32 ``[4, rows]`` and one int64 ``[rows]``."""
    numbers = torch.empty((4, len(logits)), device=logits.device)
    entropy_nats, top1_probability, margin, logsumexp = numbers.unbind(0)
    argmax = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    return RowStatistics(entropy_nats, top1_probability, margin, argmax, logsumexp)


def planes(found: RowStatistics) -> tuple[Tensor, Tensor]:
    """Return what kernels write to: the first of the four planes of numbers, and the indices."""
    return found.entropy_nats, found.argmax


@triton.jit
def tile_statistics(x, columns):
    """Return ``m``, the second largest, ``d``, ``s`` and the index of ``m`` of a tile ``x [tile]`` in float32."""
    largest = tl.max(x, axis=0)
    index = tl.min(tl.where(x == largest, columns, _NOWHERE), axis=0)
    second = tl.max(tl.where(columns == index, -float("inf"), x), axis=0)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    below = tl.maximum((x - shift) * _LOG2_E, _NEGLIGIBLE, propagate_nan=tl.PropagateNan.ALL)
    weights = tl.exp2(below)
    return largest, second, tl.sum(weights, axis=0), tl.sum(weights * below, axis=0), index


@triton.jit
def store_partial(partial, places, slot, plane, largest, second, total, product, index):
    """Write what is kept of a tile into its slot of the four planes of numbers and one of indices."""
    tl.store(partial + slot, largest)
    tl.store(partial + plane + slot, second)
    tl.store(partial + 2 * plane + slot, total)
    tl.store(partial + 3 * plane + slot, product)
    tl.store(places + slot, index)


@triton.jit
def merge_splits(partial, places, slots, mask, plane):
    """Merge the tiles of each row: ``slots`` and ``mask`` are ``[rows, splits]``; returns five ``[rows]``."""
    largest = tl.load(partial + slots, mask=mask, other=-float("inf"))
    second = tl.load(partial + plane + slots, mask=mask, other=-float("inf"))
    total = tl.load(partial + 2 * plane + slots, mask=mask, other=0.0)
    product = tl.load(partial + 3 * plane + slots, mask=mask, other=0.0)
    places = tl.load(places + slots, mask=mask, other=_NOWHERE)
    best = tl.max(largest, axis=1)
    index = tl.min(tl.where(largest == best[:, None], places, _NOWHERE), axis=1)
    runner_up = tl.max(tl.where(places == index[:, None], second, largest), axis=1)
    shift = tl.where(best == -float("inf"), 0.0, best)
    step = tl.maximum((largest - shift[:, None]) * _LOG2_E, _NEGLIGIBLE)
    shrink = tl.exp2(step)
    return best, runner_up, tl.sum(shrink * total, axis=1), tl.sum(shrink * (product + total * step), axis=1), index


@triton.jit
def store_statistics(numbers, indices, row, mask, rows, columns, largest, second, total, product, index):
    """Write the statistics of the rows ``row``; a row without a possible token is NaN like one that holds a NaN."""
    total = tl.where(largest == -float("inf"), float("nan"), total)
    log_total = tl.log(total)
    tl.store(numbers + row, log_total - _LOG_2 * (product / total), mask=mask)
    tl.store(numbers + rows + row, 1.0 / total, mask=mask)
    tl.store(numbers + 2 * rows + row, tl.where(total == total, largest - second, float("nan")), mask=mask)
    tl.store(numbers + 3 * rows + row, largest + log_total, mask=mask)
    tl.store(indices + row, tl.minimum(index, columns - 1).to(tl.int64), mask=mask)


@triton.jit
def _split_kernel(logits, row_stride, column_stride, columns, partial, places, TILE: tl.constexpr):
    row, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    inside = tl.arange(0, TILE)
    begin = logits + row.to(tl.int64) * row_stride + split.to(tl.int64) * TILE * column_stride
    column = split * TILE + inside
    x = tl.load(begin + inside * column_stride, mask=column < columns, other=-float("inf")).to(tl.float32)
    largest, second, total, product, index = tile_statistics(x, column)
    store_partial(partial, places, row * splits + split, tl.num_programs(0) * splits, largest, second, total, product, index)


@triton.jit
def _merge_kernel(partial, places, numbers, indices, rows, splits, columns, SPLITS: tl.constexpr):
    row = tl.program_id(0) + tl.arange(0, 1)
    split = tl.arange(0, SPLITS)[None, :]
    slots = row[:, None] * splits + split
    largest, second, total, product, index = merge_splits(partial, places, slots, split < splits, rows * splits)
    store_statistics(numbers, indices, row, row < rows, rows, columns, largest, second, total, product, index)


@triton.jit
def _whole_row_kernel(logits, row_stride, column_stride, columns, numbers, indices, rows, LANES: tl.constexpr, DEPTH: tl.constexpr):
    """Lanes are merged only at the end, so that the loop has no exchange between threads; ``place`` is the tile of a lane's largest."""
    begin = logits + tl.program_id(0).to(tl.int64) * row_stride
    inside = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    largest = tl.full([LANES], -float("inf"), tl.float32)
    second = tl.full([LANES], -float("inf"), tl.float32)
    total = tl.zeros([LANES], tl.float32)
    product = tl.zeros([LANES], tl.float32)
    place = tl.zeros([LANES], tl.int32)
    # A tile is asked for before the one before it is worked on: its loads take as long as that work.
    coming = tl.load(begin + inside * column_stride, mask=inside < columns, other=-float("inf"))
    for start in range(0, columns, DEPTH * LANES):
        x = coming.to(tl.float32)
        column = start + DEPTH * LANES + inside
        tile = begin + tl.cast(start + DEPTH * LANES, tl.int64) * column_stride
        coming = tl.load(tile + inside * column_stride, mask=column < columns, other=-float("inf"))
        here = tl.max(x, axis=0)
        second = tl.maximum(second, tl.minimum(largest, here))
        place = tl.where(here > largest, start, place)
        grown = tl.maximum(largest, here)
        shift = tl.where(grown == -float("inf"), 0.0, grown)
        below = tl.maximum((x - shift[None, :]) * _LOG2_E, _NEGLIGIBLE, propagate_nan=tl.PropagateNan.ALL)
        weights = tl.exp2(below)
        step = tl.maximum((largest - shift) * _LOG2_E, _NEGLIGIBLE)
        shrink = tl.exp2(step)
        product = shrink * (product + total * step) + tl.sum(weights * below, axis=0)
        total = shrink * total + tl.sum(weights, axis=0)
        largest = grown
    best = tl.max(largest, axis=0)
    step = tl.maximum((largest - tl.where(best == -float("inf"), 0.0, best)) * _LOG2_E, _NEGLIGIBLE)
    shrink = tl.exp2(step)
    product = tl.sum(shrink * (product + total * step), axis=0)
    total = tl.sum(shrink * total, axis=0)
    # The few elements among which the first largest stands are read once more: a lane knows only the tile of its own.
    first = tl.min(tl.where(largest == best, place, _NOWHERE), axis=0)
    winner = (largest == best) & (place == first)
    column = first + inside
    tile = begin + first.to(tl.int64) * column_stride
    x = tl.load(tile + inside * column_stride, mask=winner[None, :] & (column < columns), other=-float("inf")).to(tl.float32)
    index = tl.min(tl.min(tl.where(x == best, column, _NOWHERE), axis=0), axis=0)
    runner_up = tl.max(tl.max(tl.where(column == index, -float("inf"), x), axis=0), axis=0)
    second = tl.maximum(runner_up, tl.max(tl.where(winner, second, largest), axis=0))
    row = tl.program_id(0)
    store_statistics(numbers, indices, row, row < rows, rows, columns, best, second, total, product, index)
