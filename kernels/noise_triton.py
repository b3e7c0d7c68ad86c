"""The noise of :mod:`dispatch_rl.kernels.noise` inside of Triton kernels: the same words and uniforms, to the bit."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.entropy_triton import OPTIONS
from dispatch_rl.kernels.noise import Stream

BLOCK = 1_024
"""Tokens that a program of :func:`uniform` serves."""

_WORD = tl.constexpr(0xFFFFFFFF)


def uniform(seed: Tensor, positions: Tensor, vocab: int, stream: Stream, draw: Tensor) -> Tensor:
    """Return the reference's numbers ``[positions, vocab]`` for a ``seed`` and a ``draw`` held in int64 tensors of one number."""
    numbers = torch.empty((len(positions), vocab), device=positions.device)
    grid = (len(positions), triton.cdiv(vocab, BLOCK))
    with torch.cuda.device_of(positions):
        _uniform_kernel[grid](seed, positions, draw, numbers, vocab, int(stream), BLOCK, num_warps=4, **OPTIONS)
    return numbers


@triton.jit
def uniform_words(seed, position, draw, blocks, STREAM: tl.constexpr):
    """Return the four uniforms of every block of four tokens; position and draw are int64 and broadcast against ``blocks`` (int32)."""
    stream = tl.full([1], STREAM, tl.uint32)
    where, which = (position & _WORD).to(tl.uint32), (draw & _WORD).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed.to(tl.uint64, bitcast=True), blocks.to(tl.uint32, bitcast=True), where, stream, which)
    return _to_uniform(w0), _to_uniform(w1), _to_uniform(w2), _to_uniform(w3)


@triton.jit
def uniform_tile(seed, position, draw, first_block, STREAM: tl.constexpr, TILE: tl.constexpr):
    """Return the uniforms ``[tile]`` of the tokens from ``4 * first_block`` on."""
    u0, u1, u2, u3 = uniform_words(seed, position, draw, first_block + tl.arange(0, TILE // 4), STREAM)
    return tl.interleave(tl.interleave(u0, u2), tl.interleave(u1, u3))


@triton.jit
def to_gumbel(u):
    """Return ``-log(-log1p(-u))``.

    With ``w = fl(1 - u)``, ``-log1p(-u) = log(w) * u / (w - 1)`` to a few units in the last place (Kahan): the rounding of ``w`` is
    undone by the division, since ``log(w) / (w - 1)`` hardly changes around one.
    """
    w = 1.0 - u
    whole = w == 1.0
    exponential = tl.where(whole, u, tl.log(w) * (u / tl.where(whole, 1.0, w - 1.0)))
    return -tl.log(exponential)


@triton.jit
def _to_uniform(word):
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)


@triton.jit
def _uniform_kernel(seed, positions, draw, numbers, vocab, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    row, block = tl.program_id(0), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    u = uniform_tile(tl.load(seed), tl.load(positions + row), tl.load(draw), block * (BLOCK // 4), STREAM, BLOCK)
    tl.store(numbers + row.to(tl.int64) * vocab + token, u, mask=token < vocab)
