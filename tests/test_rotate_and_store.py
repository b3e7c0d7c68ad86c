"""Queries and keys are turned as exactly as torch turns them and go where they belong: by the reference and by the kernel."""

from collections.abc import Callable
from math import pi
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dispatch_rl.kernels import rotate_and_store as reference
from dispatch_rl.kernels import rotate_and_store_triton
from dispatch_rl.kernels.operations import REFERENCES, kernels
from dispatch_rl.kernels.rotate_and_store import HeadNorms
from tests.helpers import DEVICE, assert_no_worse_than_torch, rounding

Rotate = Callable[..., Tensor]
CAPACITY = 40


class Inputs(NamedTuple):
    """The arguments."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    buffer: Tensor
    where: Tensor
    norms: HeadNorms | None

    @property
    def parts(self) -> list[int]:
        """Heads of queries, of keys and of values."""
        kv_heads = len(self.buffer) // 2
        return [self.qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads]


def memory(x: Tensor) -> Tensor:
    """Return all the memory in which ``x`` lies."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())


def kernel(qkv: Tensor, cos: Tensor, sin: Tensor, buffer: Tensor, where: Tensor, norms: HeadNorms | None = None) -> Tensor:
    """Run the kernel where it can run, on tensors of the same strides, and bring back all the memory that it could have written."""
    given = [qkv, buffer, cos, sin, where, *(norms or ())[:2]]
    there = [memory(x).to(DEVICE) for x in given]
    q, cache, c, s, at, *weights = (m.as_strided(x.shape, x.stride(), x.storage_offset()) for m, x in zip(there, given, strict=True))
    moved = None if norms is None else HeadNorms(weights[0], weights[1], norms.eps)
    found = rotate_and_store_triton.rotate_and_store(q, c, s, cache, at, moved)
    assert (found.data_ptr(), found.stride()) == (q.data_ptr(), q.stride())
    for theirs, ours in zip(there[:2], given[:2], strict=True):
        memory(ours).copy_(theirs)
    return qkv[:, : found.shape[1]]


@pytest.fixture(params=["reference", "kernel"])
def rotate(request: pytest.FixtureRequest) -> Rotate:
    """The reference, and the kernel: compiled where there is a GPU, else in Triton's interpreter."""
    return reference.rotate_and_store if request.param == "reference" else kernel


def inputs(
    tokens: int, heads: tuple[int, int], head_dim: int, normed: bool = False, dtype: torch.dtype = torch.float32, scale: float = 1
) -> Inputs:
    """Return normal numbers, angles and positions at random, and a cache that is NaN."""
    generator = torch.Generator().manual_seed(tokens + head_dim)
    qkv = scale * torch.randn(tokens, heads[0] + 2 * heads[1], head_dim, generator=generator)
    # Models have the same cosines in both halves of a head; nothing depends on it.
    angles = 2 * pi * torch.rand(tokens, 1, head_dim, generator=generator)
    cos, sin = angles.cos(), angles.sin()
    buffer = torch.full((2 * heads[1], CAPACITY, head_dim), torch.nan)
    where = torch.randperm(CAPACITY, generator=generator)[:tokens]
    q_weight, k_weight = (1 + torch.rand(2, head_dim, generator=generator)).to(dtype)
    norms = HeadNorms(q_weight, k_weight, 1e-6) if normed else None
    return Inputs(qkv.to(dtype), cos.to(dtype), sin.to(dtype), buffer.to(dtype), where, norms)


def copied(given: Inputs) -> Inputs:
    """Return inputs of their own memory."""
    return given._replace(qkv=given.qkv.clone(), buffer=given.buffer.clone())


def formula(given: Inputs) -> tuple[Tensor, Tensor]:
    """Return in float64, pair by pair, queries and keys ``[tokens, heads + kv_heads, head_dim]`` as they should be, and what was summed."""
    x, cos, sin = given.qkv[:, : sum(given.parts[:2])].double(), given.cos[:, 0].double(), given.sin[:, 0].double()
    if given.norms is not None:
        x /= (x.square().mean(-1, keepdim=True) + given.norms.eps).sqrt()
        x[:, : given.parts[0]] *= given.norms.q_weight.double()
        x[:, given.parts[0] :] *= given.norms.k_weight.double()
    half = x.shape[2] // 2
    pairs = [(x[..., i] * cos[:, i, None], x[..., (i + half) % (2 * half)] * sin[:, i, None]) for i in range(2 * half)]
    return torch.stack([a + b for a, b in pairs], -1), torch.stack([a.abs() + b.abs() for a, b in pairs], -1)


def by_torch(given: Inputs) -> Tensor:
    """Return queries and keys as an eager pass turns them, in as many steps."""
    qk = given.qkv[:, : sum(given.parts[:2])].clone()
    if given.norms is not None:
        for part, weight in zip(qk.split(given.parts[:2], dim=1), given.norms[:2], strict=True):
            part.copy_(F.rms_norm(part, part.shape[-1:], weight, given.norms.eps))
    others = qk.roll(qk.shape[-1] // 2, -1)
    return qk.mul_(given.cos).addcmul_(others, given.sin)


def run(rotate: Rotate, given: Inputs) -> Tensor:
    """Return queries and keys as they are then, and assert that the rest is right to the bit.

    The values are in the cache as they were, keys and values in ``qkv`` stay, and no other position of the cache was written.
    """
    mine = copied(given)
    q = rotate(*mine)
    assert q.data_ptr() == mine.qkv.data_ptr()
    heads, kv_heads, _ = given.parts
    assert torch.equal(mine.qkv[:, heads:], given.qkv[:, heads:])
    written = mine.buffer[:, given.where].transpose(0, 1)
    assert torch.equal(written[:, kv_heads:], given.qkv[:, heads + kv_heads :])
    elsewhere = torch.ones(given.buffer.shape[1], dtype=torch.bool).index_fill_(0, given.where, False)
    assert mine.buffer[:, elsewhere].isnan().all()
    return torch.cat([q, written[:, :kv_heads]], dim=1)


def test_an_example_by_hand(rotate: Rotate) -> None:
    """A quarter turn takes (3, 4) to (-4, 3), and a turn of which cosine and sine are 0.6 and 0.8 takes (5, 10) to (-5, 10)."""
    qkv = torch.tensor([[[3.0, 5.0, 4.0, 10.0], [6.0, 5.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.tensor([[[0, 0.6, 0, 0.6]]]), torch.tensor([[[-1, -0.8, 1, 0.8]]])
    buffer = torch.zeros(2, 3, 4)
    found = rotate(qkv, cos, sin, buffer, torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([[[-4.0, -5.0, 3.0, 10.0]]]))
    expected = torch.zeros(2, 3, 4)
    expected[:, 1] = torch.tensor([[-8.0, -5.0, 6.0, 10.0], [1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(buffer, expected)


def test_norms_by_hand(rotate: Rotate) -> None:
    """(1, 7) has the mean square 25, so without a turn it becomes (0.2, 1.4) times the weights; (3, 3) has 9, to which eps adds 16."""
    qkv, nothing = torch.tensor([[[1.0, 7.0], [1.0, 7.0], [9.0, 9.0]], [[3.0, 3.0], [3.0, 3.0], [9.0, 9.0]]]), torch.zeros(2, 1, 2)
    buffer = torch.zeros(2, 2, 2)
    weights = torch.tensor([10.0, 100.0]), torch.tensor([1.0, 2.0])
    found = rotate(qkv[:1], nothing[:1] + 1, nothing[:1], buffer, torch.tensor([0]), HeadNorms(*weights, 0.0))
    torch.testing.assert_close(found, torch.tensor([[[2.0, 140.0]]]))
    torch.testing.assert_close(buffer[0, 0], torch.tensor([0.2, 2.8]))
    found = rotate(qkv[1:], nothing[1:] + 1, nothing[1:], buffer, torch.tensor([1]), HeadNorms(*weights, 16.0))
    torch.testing.assert_close(found, torch.tensor([[[6.0, 60.0]]]))


SHAPES = [(1, (12, 2), 128), (2, (7, 1), 64), (6, (4, 4), 80), (17, (4, 1), 32), (3, (2, 1), 10)]
"""Tokens, heads with and of keys, head_dim: all kinds of groups, halves that are no powers of two."""


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), SHAPES)
def test_no_worse_than_torch(rotate: Rotate, tokens: int, heads: tuple[int, int], head_dim: int, normed: bool) -> None:
    """Every error is at most twice torch's own."""
    given = inputs(tokens, heads, head_dim, normed)
    assert_no_worse_than_torch(run(rotate, given), by_torch(given), formula(given)[0])


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [SHAPES[0], (5, (4, 2), 80)])
def test_half_precision(rotate: Rotate, tokens: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, normed: bool) -> None:
    """It is rounded once; the few roundings in float32 before, of terms that may cancel, are at most 16 units of their sizes."""
    given = inputs(tokens, heads, head_dim, normed, dtype)
    found, (exact, sizes) = run(rotate, given), formula(given)
    assert found.dtype == dtype
    limits = torch.finfo(dtype)
    bound = (
        rounding(dtype, rotate is kernel) * exact.abs() + 16 * torch.finfo(torch.float32).eps * sizes + limits.smallest_normal * limits.eps
    )
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("scale", [1e-5, 1e15])
def test_norms_of_very_small_and_large_heads(rotate: Rotate, scale: float) -> None:
    """Where eps is all there is, and where the squares are nearly all that float32 holds."""
    given = inputs(2, (2, 1), 64, normed=True, scale=scale)
    assert_no_worse_than_torch(run(rotate, given), by_torch(given), formula(given)[0])


@pytest.mark.parametrize("where", [[0], [CAPACITY - 1], [7, 8, 9], [CAPACITY - 1, 3, 0]], ids=str)
def test_any_position(rotate: Rotate, where: list[int]) -> None:
    """The first and the last, in a row or not: keys and values go there, and the angles are those that were given."""
    given = inputs(len(where), (2, 2), 16)._replace(where=torch.tensor(where))
    assert_no_worse_than_torch(run(rotate, given), by_torch(given), formula(given)[0])


def test_strided_input(rotate: Rotate) -> None:
    """A part of a wider product, a layer of a cache whose positions come first, angles and positions of which every other one counts."""
    plain = inputs(3, (4, 2), 64, normed=True)
    product, angles = torch.full((3, 11, 70), torch.nan), torch.full((2, 6, 1, 66), torch.nan)
    qkv, cos, sin = product[:, 2:10, 3:67], angles[0, ::2, :, 2:], angles[1, ::2, :, 2:]
    qkv[:], cos[:], sin[:] = plain.qkv, plain.cos, plain.sin
    layers = torch.full((2, CAPACITY, 4, 64), torch.nan)
    at = torch.full((6,), -1)
    at[1::2] = plain.where
    strided = Inputs(qkv, cos, sin, layers.transpose(1, 2)[1], at[1::2], plain.norms)
    found = rotate(*strided)
    expected = run(rotate, plain)
    assert torch.equal(torch.cat([found, strided.buffer[:2, plain.where].transpose(0, 1)], dim=1), expected)
    assert torch.equal(strided.buffer[2:, plain.where].transpose(0, 1), plain.qkv[:, 6:])
    assert layers[0].isnan().all()
    assert layers[1].isnan().sum() == (CAPACITY - 3) * 4 * 64
    qkv.fill_(torch.nan)
    assert product.isnan().all()


def test_nan_stays_where_it_is(rotate: Rotate) -> None:
    """In a query, a key or a value, normed or not, it spoils that head of that token."""
    given = inputs(3, (4, 2), 16, normed=True)
    clean = copied(given)
    for token, head in ((0, 1), (1, 5), (2, 7)):
        given.qkv[token, head, 3] = torch.nan
    for x in (given, clean):
        rotate(*x)
    q, cached = given.qkv[:, :4], given.buffer[:, given.where].transpose(0, 1)
    assert q[0, 1].isnan().all()
    assert cached[1, 1].isnan().all()
    assert cached[2, 3].isnan().nonzero().tolist() == [[3]]
    q[0, 1], cached[1, 1], cached[2, 3, 3] = clean.qkv[0, 1], clean.buffer[1, clean.where[1]], clean.buffer[3, clean.where[2], 3]
    assert torch.equal(q, clean.qkv[:, :4])
    assert torch.equal(cached, clean.buffer[:, clean.where].transpose(0, 1))


def test_what_it_cannot_do_is_refused() -> None:
    """Heads whose elements lie apart, and heads that cannot be halved."""
    given = inputs(1, (1, 1), 16)
    with pytest.raises(ValueError, match="side by side"):
        rotate_and_store_triton.rotate_and_store(*given._replace(qkv=given.qkv.transpose(1, 2).contiguous().transpose(1, 2)))
    with pytest.raises(ValueError, match="15 is odd"):
        rotate_and_store_triton.rotate_and_store(*given._replace(qkv=given.qkv[..., 1:]))


def test_it_is_an_operation() -> None:
    """The reference here, the kernel there."""
    assert REFERENCES.rotate_and_store is reference.rotate_and_store
    assert kernels().rotate_and_store is rotate_and_store_triton.rotate_and_store
