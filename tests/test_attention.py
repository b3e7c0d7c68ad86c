"""Attention over a used part of a cache is as exact as torch's own: the reference's and the kernels', however the context is split."""

from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from dispatch_rl.decoding import fused
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.kernels import attention as reference
from dispatch_rl.kernels import attention_triton
from dispatch_rl.kernels.operations import REFERENCES, kernels
from tests.helpers import DEVICE, assert_no_worse_than_torch, poisoned

Attention = Callable[..., Tensor]


def kernel(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Run the kernels where they can run, in poisoned memory."""
    q, keys, values, length = (x.to(DEVICE) for x in (q, keys, values, length))
    given, wanted = (None if x is None else x.to(DEVICE) for x in (visible, out))
    with poisoned():
        found = attention_triton.attention(q, keys, values, length, given, wanted)
    return found.cpu() if out is None else out.copy_(found)


@pytest.fixture(params=["reference", "many splits", "two splits"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attention:
    """The reference, and the kernels with a split for every tile, or with two that go through many tiles each."""
    if request.param == "reference":
        return reference.attention
    monkeypatch.setattr(attention_triton, "MOST_SPLITS", 2 if request.param == "two splits" else 64)
    return kernel


def inputs(
    queries: int,
    heads: tuple[int, int],
    head_dim: int,
    length: int,
    capacity: int = 160,
    dtype: torch.dtype = torch.float32,
    scale: float = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return normal queries, and keys and values that are NaN behind the ``length`` used positions."""
    generator = torch.Generator().manual_seed(length + 1_000 * queries)
    q = scale * torch.randn(queries, heads[0], head_dim, generator=generator)
    cache = torch.randn(2 * heads[1], capacity, head_dim, generator=generator)
    cache[:, length:] = torch.nan
    keys, values = cache.to(dtype).chunk(2)
    return q.to(dtype), keys, values, torch.tensor([length])


def seen_by(queries: int, length: int, visible: Tensor | None) -> Tensor:
    """Return which positions each query sees ``[queries, length]``, one by one."""
    past = length - queries
    rows = [
        [p < past or p - past == i or (p - past < i if visible is None else bool(visible[i, p - past])) for p in range(length)]
        for i in range(queries)
    ]
    return torch.tensor(rows)


def formula(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the attention in float64, every head by itself, and what it would be of the values' sizes."""
    used, seen, each = int(length), seen_by(len(q), int(length), visible), q.shape[1] // len(keys)
    k, v = (x[:, :used].double().repeat_interleave(each, 0) for x in (keys, values))
    scores = q.double().transpose(0, 1) @ k.transpose(1, 2) / q.shape[2] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1), (weights @ v.abs()).transpose(0, 1)


def by_torch(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return torch's own attention over the used positions."""
    used, seen = int(length), seen_by(len(q), int(length), visible)
    k, v = keys[None, :, :used], values[None, :, :used]
    return F.scaled_dot_product_attention(q.transpose(0, 1)[None], k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)


def assert_as_good_as_torch(attention: Attention, *arguments: Any) -> None:
    """Compare float32 with float64."""
    found = attention(*arguments)
    assert found.shape == arguments[0].shape
    assert found.dtype == torch.float32
    assert_no_worse_than_torch(found, by_torch(*arguments), formula(*arguments)[0])


def tree(queries: int) -> Tensor:
    """Return a draft whose last two tokens are second choices: each stands where the one before them stands."""
    visible = torch.ones(queries, queries, dtype=torch.bool).tril()
    visible[-1, -3:-1] = visible[-2, -3] = False
    return visible


def test_an_example_by_hand(attention: Attention) -> None:
    """Scores log 1, log 2 and log 5 are weights 1/8, 2/8 and 5/8; the second query sees a third of its weight more, the fourth position."""
    q, keys, values = torch.zeros(2, 1, 16), torch.full((1, 40, 16), torch.nan), torch.full((1, 40, 16), torch.nan)
    q[:, 0, 0] = 4  # the square root of 16
    keys[0, :4], values[0, :4] = 0, 0
    keys[0, :4, 0] = torch.tensor([log(1), log(2), log(5), log(4)])
    values[0, :4, 0] = torch.tensor([8.0, 4.0, 0.0, 12.0])
    found = attention(q, keys, values, torch.tensor([4]))
    # (8 + 8) / 8, and (8 + 8 + 48) / 12.
    assert found[:, 0, 0].tolist() == pytest.approx([2, 16 / 3], rel=1e-6)
    assert not found[:, 0, 1:].any()


SHAPES = [
    (1, (2, 2), 64, 1),
    (1, (7, 1), 128, 70),
    (2, (8, 2), 16, 150),
    (6, (7, 1), 128, 49),
    (17, (4, 1), 80, 45),
    (3, (3, 3), 10, 130),
    (33, (2, 1), 32, 70),
    (63, (1, 1), 16, 70),
]
"""Queries, heads with and of keys, head_dim, length: all kinds of groups, more rows than a program takes, unused lanes."""


@pytest.mark.parametrize(("queries", "heads", "head_dim", "length"), SHAPES)
def test_no_worse_than_torch(attention: Attention, queries: int, heads: tuple[int, int], head_dim: int, length: int) -> None:
    """Every error is at most twice torch's own."""
    assert_as_good_as_torch(attention, *inputs(queries, heads, head_dim, length))


@pytest.mark.parametrize("length", [2, 15, 16, 17, 31, 32, 33, 34, 48, 49, 79, 80])
def test_any_length(attention: Attention, length: int) -> None:
    """Around the borders of tiles of 16 and up to the capacity; at 17 and 33 the first query sees nothing of the last tile."""
    assert_as_good_as_torch(attention, *inputs(2, (2, 1), 128, length, capacity=80))


@pytest.mark.parametrize("scale", [0.01, 8, 100])
def test_even_and_certain_weights(attention: Attention, scale: float) -> None:
    """From nearly equal weights to one that is nearly 1, whose tile changes from row to row."""
    assert_as_good_as_torch(attention, *inputs(3, (4, 2), 128, 75, 80, scale=scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("queries", "heads", "head_dim", "length"), [SHAPES[1], (4, (2, 1), 80, 49), (1, (3, 1), 64, 159)])
def test_half_precision(attention: Attention, queries: int, heads: tuple[int, int], head_dim: int, length: int, dtype: torch.dtype) -> None:
    """Weights and result are each rounded once, by at most a unit in the last place ``u``: what the interpreter cuts off, a GPU rounds.

    So the error is at most ``u (sum(p |v|) + |out|)``. Float32 sums add far less than a sixteenth of it. Weights below the smallest number
    of float16 vanish, each of them less than that.
    """
    arguments = inputs(queries, heads, head_dim, length, dtype=dtype)
    found, (exact, of_sizes) = attention(*arguments), formula(*arguments)
    assert found.dtype == dtype
    limits = torch.finfo(dtype)
    bound = (
        17 / 16 * limits.eps * (of_sizes + exact.abs())
        + limits.smallest_normal * limits.eps * length * arguments[2][:, :length].abs().max()
    )
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(("length", "dtype"), [(6, torch.uint8), (35, torch.bool), (66, torch.uint8)], ids=str)
def test_second_choices(attention: Attention, length: int, dtype: torch.dtype) -> None:
    """Tokens that stand side by side do not see one another, whatever the tile."""
    assert_as_good_as_torch(attention, *inputs(6, (2, 1), 128, length, 80), tree(6).to(dtype))


@pytest.mark.parametrize("queries", [1, 5, 18])
def test_any_visibility(attention: Attention, queries: int) -> None:
    """Also of later tokens, and in a view."""
    visible = torch.rand(queries, 2 * queries, generator=torch.Generator().manual_seed(queries)).lt(0.5)[:, ::2]
    assert_as_good_as_torch(attention, *inputs(queries, (2, 1), 64, 60 + queries), visible)


def test_a_query_always_sees_itself(attention: Attention) -> None:
    """Where it sees nothing else, it takes its own value; where nothing new, the old ones too."""
    q, keys, values, length = inputs(4, (2, 2), 32, 4)
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    torch.testing.assert_close(attention(q, keys, values, length, nothing), values[:, :4].transpose(0, 1), rtol=1e-6, atol=0)
    assert_as_good_as_torch(attention, *inputs(4, (2, 2), 32, 64), nothing)


def test_none_is_causal(attention: Attention) -> None:
    """To the bit."""
    arguments = inputs(5, (2, 1), 64, 40)
    assert torch.equal(attention(*arguments), attention(*arguments, torch.ones(5, 5, dtype=torch.bool).tril()))


@pytest.mark.parametrize("length", [torch.tensor(37), torch.tensor([37], dtype=torch.int32), torch.tensor(37, dtype=torch.int32)])
def test_the_length_may_be_any_integer(attention: Attention, length: Tensor) -> None:
    """One number of 32 or 64 bits, with or without a dimension."""
    q, keys, values, usual = inputs(2, (2, 1), 64, 37)
    assert torch.equal(attention(q, keys, values, length), attention(q, keys, values, usual))


@pytest.mark.parametrize("layout", ["stacked", "positions first", "values apart"])
def test_strided_input(attention: Attention, layout: str) -> None:
    """Keys and values are slices of one buffer, queries of one product, and the result goes where it is wanted."""
    q, keys, values, length = inputs(3, (4, 2), 64, 50, 64)
    product, buffer = torch.full((3, 9, 64), torch.nan), torch.full((2, 1, 4, 64, 64), torch.nan)
    product[:, :4], buffer[1, 0] = q, torch.cat([keys, values])
    if layout == "positions first":
        buffer = buffer.transpose(2, 3).contiguous().transpose(2, 3)
    wanted, (k, v) = torch.full((3, 2, 4, 64), 7.0), buffer[1, 0].chunk(2)
    if layout == "values apart":
        v = v.transpose(0, 1).contiguous().transpose(0, 1)
    arguments = product[:, :4], k, v, length
    found = attention(*arguments, None, wanted[:, 1])
    assert found.data_ptr() == wanted[:, 1].data_ptr()
    assert torch.equal(found, attention(q, keys, values, length))
    assert (wanted[:, 0] == 7).all()


def test_the_input_is_left_alone(attention: Attention) -> None:
    """It is read, not written."""
    arguments = (*inputs(3, (2, 1), 64, 40), tree(3))
    before = [x.clone() for x in arguments]
    attention(*arguments)
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(arguments, before, strict=True))


@pytest.mark.parametrize(("length", "splits"), [(1, 1), (16, 1), (17, 2), (63, 4), (160, 10), (170, 6), (320, 10)])
def test_splits_without_a_share_return_at_once(monkeypatch: pytest.MonkeyPatch, length: int, splits: int) -> None:
    """10 splits share tiles of 16: up to 160 positions each has one tile or nothing; 11 tiles are 2 for each of 6, the last has 1."""
    made: list[Tensor] = []
    empty = torch.empty

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        made.append(empty(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(attention_triton, "MOST_SPLITS", 10)
    monkeypatch.setattr(torch, "empty", recorded)
    kernel(*inputs(1, (1, 1), 128, length, 320))
    mixed, numbers = made
    assert mixed.shape == (10, 1, 1, 128)
    written = [not part.isnan().any() for part in (*mixed, *numbers[0], *numbers[1])]
    assert written == 3 * ([True] * splits + [False] * (10 - splits))


def test_what_it_cannot_do_is_refused() -> None:
    """More queries than there are bits, and heads whose elements lie apart."""
    with pytest.raises(ValueError, match="up to 63 queries, not 64"):
        attention_triton.attention(*inputs(64, (1, 1), 16, 70))
    q, keys, values, length = inputs(1, (1, 1), 16, 70)
    with pytest.raises(ValueError, match="side by side"):
        attention_triton.attention(q, keys.transpose(1, 2).contiguous().transpose(1, 2), values, length)


def test_it_is_what_the_fused_forward_pass_asks_torch_for(attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every layer of a model, for a prompt, a token, a draft and second choices, with the keys in the cache's own buffer."""
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3))
    calls, attend = [], fused.attend

    def recorded(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        result = attend(q, keys, values, mask, causal)
        calls.append((q, keys, values, mask, result))
        return result

    cached = CachedModel(model.eval(), vocab=97)
    cached.start(64)
    with torch.inference_mode(), monkeypatch.context() as patch:
        patch.setattr(fused, "attend", recorded)
        for tokens, beside in ((9, ()), (1, ()), (4, ()), (5, (2, 2))):
            cached.forward(torch.arange(tokens), beside=beside)
    assert [call[0].shape[2] for call in calls] == [9, 9, 1, 1, 4, 4, 5, 5]
    for q, keys, values, mask, result in calls:
        visible = None if mask is None else mask[0, 0, : q.shape[2], -q.shape[2] :] == 0
        ours = attention(q[0].transpose(0, 1), keys[0], values[0], torch.tensor([keys.shape[2]]), visible)
        torch.testing.assert_close(ours.transpose(0, 1), result[0], rtol=1e-5, atol=1e-5)


def test_it_is_an_operation() -> None:
    """The reference here, the kernels there."""
    assert REFERENCES.attention is reference.attention
    assert kernels().attention is attention_triton.attention
