"""Triton kernels of :func:`dispatch_rl.kernels.verify.verify`.

Greedy and coupled: two launches. The first reads every tile of the logits once and leaves what is kept of it: the statistics of
:mod:`dispatch_rl.kernels.entropy_triton` and the target's choice. The second merges the tiles of all rows in one program and counts.

Rejection sampling: four launches. The residual ``max(p_target - q_draft, 0)`` is known once ``p_target`` is normalised, so the one row
where the draft ended is read again. With top-k or top-p, torch's :func:`~dispatch_rl.kernels.verify.shape` excludes tokens first.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.entropy_triton import OPTIONS, TILE, merge_splits, store_partial, store_statistics, tile_statistics
from dispatch_rl.kernels.noise import Stream
from dispatch_rl.kernels.noise_triton import to_gumbel, uniform_tile, uniform_words
from dispatch_rl.kernels.verify import HEADER, Rule, Turn, Verified, shape

_GREEDY, _COUPLED, _REJECTION = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_METHODS = {"greedy": 0, "coupled": 1, "rejection": 2}
_NOWHERE = tl.constexpr(2**31 - 1)
_TOKEN, _ACCEPT, _RESIDUAL = (tl.constexpr(int(stream)) for stream in (Stream.TOKEN, Stream.ACCEPT, Stream.RESIDUAL))


def verify(logits: Tensor, drafted: Tensor, turn: Turn, rule: Rule, q_draft: Tensor | None = None) -> Verified:
    """Judge a draft as the reference does; ``q_draft`` has contiguous rows."""
    rows, columns = logits.shape
    splits = triton.cdiv(columns, TILE)
    method = _METHODS[rule.method]
    filters = rule.filters and rule.method != "greedy"
    scores = shape(logits, turn.temperature, rule.top_k, rule.top_p) if filters else logits
    source = (logits, *logits.stride(), scores, columns, turn.temperature)
    noise = (turn.seed, turn.position, turn.draw)
    partial = torch.empty((6, rows, splits), device=logits.device)
    places = torch.empty((2, rows, splits), dtype=torch.int32, device=logits.device)
    packed = torch.empty(HEADER + 3 * rows, dtype=torch.int64, device=logits.device)
    numbers = packed[HEADER + rows :].view(torch.float32)
    q_stride = 0 if q_draft is None else q_draft.stride(0)
    draft = (drafted, logits if q_draft is None else q_draft, q_stride, turn.num_drafted)
    pads = (triton.next_power_of_2(rows), triton.next_power_of_2(splits))
    with torch.cuda.device_of(logits):
        _scan_kernel[(rows, splits)](*source, *noise, partial, places, method, filters, TILE, num_warps=16, **OPTIONS)
        _judge_kernel[(1,)](
            *source, *noise, *draft, partial, places, packed, numbers, rows, splits, method, filters, HEADER, *pads, num_warps=4, **OPTIONS
        )
        if rule.method == "rejection":
            _residual_kernel[(splits,)](*source, *noise, *draft[1:], partial, places, packed, rows, filters, TILE, num_warps=16, **OPTIONS)
            _resample_kernel[(1,)](partial, places, packed, rows, splits, columns, pads[1], num_warps=1, **OPTIONS)
    return Verified(packed)


@triton.jit
def _shaped(x, scores, at, inside, temperature, FILTERS: tl.constexpr):
    """Return the logits after temperature, top-k and top-p; ``-inf`` outside."""
    return tl.load(scores + at, mask=inside, other=-float("inf")) if FILTERS else tl.div_rn(x, temperature)


@triton.jit
def _best(scores, column):
    """Return the largest score of a tile and its lowest index."""
    best = tl.max(scores, axis=0)
    return best, tl.min(tl.where(scores == best, column, _NOWHERE), axis=0)


@triton.jit
def _scan_kernel(
    logits, row_stride, column_stride, scores, columns, temperature, seed, position, draw, partial, places,
    METHOD: tl.constexpr, FILTERS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    plane = tl.num_programs(0) * splits
    slot = row * splits + split
    inside = tl.arange(0, TILE)
    begin = logits + row.to(tl.int64) * row_stride + split.to(tl.int64) * TILE * column_stride
    column = split * TILE + inside
    x = tl.load(begin + inside * column_stride, mask=column < columns, other=-float("inf")).to(tl.float32)
    largest, second, total, product, index = tile_statistics(x, column)
    store_partial(partial, places, slot, plane, largest, second, total, product, index)
    if METHOD != _GREEDY:
        shaped = _shaped(x, scores, row.to(tl.int64) * columns + column, column < columns, tl.load(temperature), FILTERS)
        if METHOD == _COUPLED:
            u = uniform_tile(tl.load(seed), tl.load(position) + row, tl.zeros([1], tl.int64), split * (TILE // 4), _TOKEN, TILE)
            best, at = _best(shaped + to_gumbel(u), column)
            tl.store(partial + 4 * plane + slot, best)
            tl.store(places + plane + slot, at)
        else:
            best = tl.max(shaped, axis=0)
            weights = tl.exp(shaped - tl.where(best == -float("inf"), 0.0, best))
            tl.store(partial + 4 * plane + slot, best)
            tl.store(partial + 5 * plane + slot, tl.sum(weights, axis=0))


@triton.jit
def _judge_kernel(
    logits, row_stride, column_stride, scores, columns, temperature, seed, position, draw, drafted, q_draft, q_stride, num_drafted,
    partial, places, packed, numbers, rows, splits,
    METHOD: tl.constexpr, FILTERS: tl.constexpr, HEADER: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Merge the tiles of all rows, write the statistics, and count the draft tokens that stand."""
    row, split = tl.arange(0, ROWS), tl.arange(0, SPLITS)[None, :]
    plane = rows * splits
    slots = row[:, None] * splits + split
    mask = (row[:, None] < rows) & (split < splits)
    largest, second, total, product, index = merge_splits(partial, places, slots, mask, plane)
    store_statistics(numbers, packed + HEADER, row, row < rows, rows, columns, largest, second, total, product, index)
    drafts = tl.load(num_drafted)
    token = tl.load(drafted + row, mask=row < rows - 1, other=0)
    chosen = index
    if METHOD != _GREEDY:
        tops = tl.load(partial + 4 * plane + slots, mask=mask, other=-float("inf"))
        best = tl.max(tops, axis=1)
    if METHOD == _COUPLED:
        at = tl.load(places + plane + slots, mask=mask, other=_NOWHERE)
        chosen = tl.min(tl.where(tops == best[:, None], at, _NOWHERE), axis=1)
    chosen = tl.minimum(chosen, columns - 1)
    if METHOD == _REJECTION:
        totals = tl.load(partial + 5 * plane + slots, mask=mask, other=0.0)
        top = tl.where(best == -float("inf"), 0.0, best)
        mass = tl.sum(totals * tl.exp(tops - top[:, None]), axis=1)
        # The planes of the statistics have been read; the row's two numbers go to the first slot of each row.
        tl.debug_barrier()
        tl.store(partial + row * splits, top, mask=row < rows)
        tl.store(partial + plane + row * splits, mass, mask=row < rows)
        judged = row < rows - 1
        place = row.to(tl.int64)
        x = tl.load(logits + place * row_stride + token * column_stride, mask=judged, other=0.0).to(tl.float32)
        shaped = _shaped(x, scores, place * columns + token, judged, tl.load(temperature), FILTERS)
        p = tl.exp(shaped - top) / mass
        q = tl.load(q_draft + place * q_stride + token, mask=judged, other=0.0)
        u, _, _, _ = uniform_words(tl.load(seed), tl.load(position) + place, tl.load(draw), tl.zeros([ROWS], tl.int32), _ACCEPT)
        stands = u * q < p
    else:
        stands = chosen == token
    fails = (row >= drafts) | (stands == 0)
    accepted = tl.min(tl.where(fails, row, ROWS - 1), axis=0)
    tl.store(packed, accepted.to(tl.int64))
    if METHOD != _REJECTION:
        tl.store(packed + 1, tl.sum(tl.where(row == accepted, chosen, 0), axis=0).to(tl.int64))
    tl.store(packed + 2, tl.zeros([], tl.int64))


@triton.jit
def _residual_kernel(
    logits, row_stride, column_stride, scores, columns, temperature, seed, position, draw, q_draft, q_stride, num_drafted,
    partial, places, packed, rows, FILTERS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sample from a tile of the row where the draft ended: from the residual, and from the target in case nothing is left over."""
    split, splits = tl.program_id(0), tl.num_programs(0)
    plane = rows * splits
    row = tl.load(packed)
    inside = tl.arange(0, TILE)
    column = split * TILE + inside
    begin = logits + row * row_stride + split.to(tl.int64) * TILE * column_stride
    x = tl.load(begin + inside * column_stride, mask=column < columns, other=-float("inf")).to(tl.float32)
    shaped = _shaped(x, scores, row * columns + column, column < columns, tl.load(temperature), FILTERS)
    p = tl.exp(shaped - tl.load(partial + row * splits)) / tl.load(partial + plane + row * splits)
    # Behind a draft that stands whole, nothing is subtracted.
    drawn = tl.where(row < tl.load(num_drafted), columns, 0)
    q = tl.load(q_draft + row * q_stride + column, mask=column < drawn, other=0.0)
    noise = to_gumbel(uniform_tile(tl.load(seed), tl.load(position) + row, tl.load(draw), split * (TILE // 4), _RESIDUAL, TILE))
    best, at = _best(_log(p - q) + noise, column)
    tl.store(partial + 4 * plane + split, best)
    tl.store(places + split, at)
    best, at = _best(_log(p) + noise, column)
    tl.store(partial + 5 * plane + split, best)
    tl.store(places + plane + split, at)


@triton.jit
def _log(p):
    """Return the logarithm where ``p`` is positive and ``-inf`` elsewhere."""
    return tl.where(p > 0, tl.log(tl.where(p > 0, p, 1.0)), -float("inf"))


@triton.jit
def _resample_kernel(partial, places, packed, rows, splits, columns, SPLITS: tl.constexpr):
    split = tl.arange(0, SPLITS)
    plane = rows * splits
    residual = tl.load(partial + 4 * plane + split, mask=split < splits, other=-float("inf"))
    target = tl.load(partial + 5 * plane + split, mask=split < splits, other=-float("inf"))
    _, in_residual = _best(residual, tl.load(places + split, mask=split < splits, other=_NOWHERE))
    _, in_target = _best(target, tl.load(places + plane + split, mask=split < splits, other=_NOWHERE))
    following = tl.where(tl.max(residual, axis=0) > -float("inf"), in_residual, in_target)
    tl.store(packed + 1, tl.minimum(following, columns - 1).to(tl.int64))
