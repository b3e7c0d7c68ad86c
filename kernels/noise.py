"""Counter-based noise: the same number for the same (seed, position, token), on every device and in any order.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The layout is part of the format:

====== ==================================================================
key    ``(seed & 0xffffffff, seed >> 32)``
word 0 token id // 4; the token takes output word ``token id % 4``
word 1 position of the token in the sequence, prompt included, from zero
word 2 stream (:class:`Stream`): what the number is for
word 3 draw: zero for coupled sampling, the round's number for rejection sampling
====== ==================================================================

An output word ``w`` becomes ``u = min((float32(w) + 0.5) * 2**-32, 1 - 2**-24)`` in float32, strictly between 0 and 1, and Gumbel noise
``-log(-log1p(-u))``: the tail of large noise comes from small ``u``, where float32 is finest.
"""

from enum import IntEnum

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """What a random number is for; two purposes never share one."""

    TOKEN = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def philox(counter: Tensor, key: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """Return the four output words of Philox4x32-10.

    Args:
        counter: Four 32-bit words held in int64 ``[4, ...]``.
        key: Two 32-bit words; tensors of them are held in int64 and broadcast against a word of the counter.

    Returns:
        Four 32-bit words held in int64 ``[4, ...]``.
    """
    x0, x1, x2, x3 = counter.unbind(0)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK, (product1 >> 32) & _MASK
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, product1 & _MASK, high0 ^ x3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return torch.stack([x0, x1, x2, x3])


def uniform(seed: int | Tensor, positions: Tensor, vocab: int, stream: Stream, draw: int | Tensor = 0) -> Tensor:
    """Return float32 numbers in (0, 1) ``[positions, vocab]``.

    Args:
        seed: 64-bit seed, or one for each position ``[positions]``: its 64 bits held in int64.
        positions: Positions in the sequence, int64 ``[positions]``.
        vocab: Number of tokens.
        stream: What the numbers are for.
        draw: Separates repeated draws at one position; a number or a tensor of one.
    """
    blocks = torch.arange((vocab + 3) // 4, device=positions.device)
    counter = torch.zeros((4, len(positions), len(blocks)), dtype=torch.int64, device=positions.device)
    counter[0], counter[1], counter[2], counter[3] = blocks, positions[:, None], int(stream), draw
    seed = seed[:, None] if isinstance(seed, Tensor) else seed
    words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
    words = words.permute(1, 2, 0).reshape(len(positions), 4 * len(blocks))[:, :vocab]
    return ((words.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)


def gumbel(seed: int | Tensor, positions: Tensor, vocab: int, stream: Stream = Stream.TOKEN, draw: int | Tensor = 0) -> Tensor:
    """Return standard Gumbel noise in float32 ``[positions, vocab]``; arguments as for :func:`uniform`."""
    return to_gumbel(uniform(seed, positions, vocab, stream, draw))


def to_gumbel(uniforms: Tensor) -> Tensor:
    """Return the Gumbel noise that ``uniforms`` stand for."""
    return -torch.log(-torch.log1p(-uniforms))
