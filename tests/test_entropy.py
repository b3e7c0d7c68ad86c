"""The statistics of a row of logits are as exact as torch's own, whatever the row looks like: the reference's and the kernels'."""

from collections.abc import Callable
from math import inf, log

import pytest
import torch
from torch import Tensor

from dispatch_rl.kernels import entropy as reference
from dispatch_rl.kernels import entropy_triton
from dispatch_rl.kernels.entropy import RowStatistics
from tests.helpers import DEVICE, assert_no_worse_than_torch, needs_gpu, poisoned

ROWS = {151_936: 2, 50_257: 3, 2_048: 17, 2_039: 9}
"""Rows by vocabulary: Qwen2's, GPT-2's, the pocket family's, and a prime."""

Entropy = Callable[..., RowStatistics]


@pytest.fixture(params=["reference", "split_rows", "whole_rows"])
def entropy(request: pytest.FixtureRequest) -> Entropy:
    """The reference, and the kernels: compiled where there is a GPU, else in Triton's interpreter, in poisoned memory."""
    if request.param == "reference":
        return reference.entropy

    def kernel(x: Tensor, vocab: int | None = None) -> RowStatistics:
        with poisoned():
            found: RowStatistics = getattr(entropy_triton, request.param)(x.to(DEVICE), vocab)
        return RowStatistics(*(value.cpu() for value in found))

    return kernel


def logits(rows: int, vocab: int, scale: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return normal logits with standard deviation ``scale``."""
    return (scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))).to(dtype)


def formulas(x: Tensor) -> RowStatistics:
    """Return the definitions, written out with torch in the dtype of ``x``."""
    log_p = x.log_softmax(-1)
    best = x.sort(dim=-1, descending=True).values
    return RowStatistics(
        entropy_nats=-(log_p.exp() * log_p).sum(-1),
        top1_probability=x.softmax(-1).amax(-1),
        margin=best[:, 0] - best[:, 1],
        argmax=(x == best[:, :1]).long().argmax(-1),
        logsumexp=x.logsumexp(-1),
    )


def assert_as_good_as_torch(entropy: Entropy, x: Tensor) -> None:
    """Compare every statistic of finite logits with float64."""
    ours, in_float32, exact = entropy(x), formulas(x.float()), formulas(x.double())
    assert_no_worse_than_torch(ours.entropy_nats, in_float32.entropy_nats, exact.entropy_nats)
    assert_no_worse_than_torch(ours.top1_probability, in_float32.top1_probability, exact.top1_probability)
    assert_no_worse_than_torch(ours.margin, in_float32.margin, exact.margin)
    assert_no_worse_than_torch(ours.logsumexp, in_float32.logsumexp, exact.logsumexp)
    assert torch.equal(ours.argmax, exact.argmax)
    assert all(value.dtype == (torch.int64 if name == "argmax" else torch.float32) for name, value in ours._asdict().items())


def test_an_example_by_hand(entropy: Entropy) -> None:
    """p = (1/2, 1/4, 1/4): entropy (1/2 + 2/4 + 2/4) log 2 = 1.5 log 2, margin log 2, whatever is added to all logits."""
    p = torch.tensor([[0.25, 0.5, 0.25]])
    found = entropy(p.log() + 3)
    assert found.entropy_nats.item() == pytest.approx(1.5 * log(2), rel=1e-6)
    assert found.top1_probability.item() == pytest.approx(0.5, rel=1e-6)
    assert found.margin.item() == pytest.approx(log(2), rel=1e-6)
    assert found.argmax.item() == 1
    assert found.logsumexp.item() == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 12.0, 40.0])
@pytest.mark.parametrize("vocab", ROWS)
def test_no_worse_than_torch(entropy: Entropy, vocab: int, scale: float, dtype: torch.dtype) -> None:
    """From nearly uniform to nearly certain rows, every error is at most twice torch's own."""
    assert_as_good_as_torch(entropy, logits(ROWS[vocab], vocab, scale, dtype))


@pytest.mark.parametrize("vocab", [152_064, 128_256])
def test_other_vocabularies(entropy: Entropy, vocab: int) -> None:
    """The larger Qwen2 models' padded vocabulary, and Llama 3's."""
    assert_as_good_as_torch(entropy, logits(1, vocab, 4.0, torch.bfloat16))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows(entropy: Entropy, dtype: torch.dtype) -> None:
    """4096 rows, some of them with ties or impossible tokens: the argmax is exact, the rest as exact as torch's."""
    x = logits(4_096, 50_257, 4.0, dtype)
    x[::7, ::3] = -inf
    found, expected = entropy(x), reference.entropy(x)
    assert torch.equal(found.argmax, expected.argmax)
    torch.testing.assert_close(found.entropy_nats, expected.entropy_nats, atol=1e-5, rtol=1e-5)


def test_the_number_of_rows_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are split, many have a program each; the statistics are the same."""
    x = logits(4, 2_039, 3.0).to(DEVICE)
    split = entropy_triton.entropy(x)
    monkeypatch.setattr(entropy_triton, "MANY_ROWS", 4)
    monkeypatch.setattr(entropy_triton, "split_rows", None)
    for few, many in zip(split, entropy_triton.entropy(x), strict=True):
        torch.testing.assert_close(few, many, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("rows", range(1, 18))
def test_any_number_of_rows(entropy: Entropy, rows: int) -> None:
    """1 to 17 rows."""
    assert_as_good_as_torch(entropy, logits(rows, 509, 3.0, seed=rows))


@pytest.mark.parametrize("offset", [-1e4, -300.0, 300.0, 1e4])
@pytest.mark.parametrize("vocab", [7, 2_039])
def test_large_logits(entropy: Entropy, vocab: int, offset: float) -> None:
    """What is added to all logits costs no accuracy beyond what torch loses."""
    assert_as_good_as_torch(entropy, logits(9, vocab, 2.0) + offset)


def test_logits_of_plus_and_minus_ten_thousand(entropy: Entropy) -> None:
    """Two of three tokens at 1e4 and one at -1e4: entropy log 2, nothing overflows."""
    found = entropy(torch.tensor([[1e4, -1e4, 1e4]]))
    assert found.entropy_nats.item() == pytest.approx(log(2), rel=1e-6)
    assert found.top1_probability.item() == pytest.approx(0.5, rel=1e-6)
    assert (found.margin.item(), found.argmax.item()) == (0, 0)
    assert found.logsumexp.item() == pytest.approx(1e4 + log(2), rel=1e-6)


def test_the_vocabulary_cut_ignores_the_rest(entropy: Entropy) -> None:
    """Columns beyond ``vocab`` do not matter, even where they are the largest or NaN."""
    x = logits(5, 300, 3.0)
    padded = torch.cat([x, torch.full((5, 20), 99.0), torch.full((5, 1), torch.nan)], dim=1)
    for cut, alone in zip(entropy(padded, vocab=300), entropy(x), strict=True):
        assert torch.equal(cut, alone)


@pytest.mark.parametrize("value", [-1e4, 0.0, 31.7])
def test_only_one_possible_token(entropy: Entropy, value: float) -> None:
    """All -inf but one: entropy 0, probability 1, infinite margin, no NaN."""
    x = torch.full((1, 100), -inf)
    x[0, 63] = value
    assert [found.item() for found in entropy(x)] == [0, 1, inf, 63, pytest.approx(value)]


def test_some_impossible_tokens(entropy: Entropy) -> None:
    """Tokens at -inf add nothing: the rest is the row without them."""
    x = logits(4, 50, 2.0)
    masked = torch.full((4, 150), -inf)
    masked[:, 1::3] = x
    exact, found = formulas(x.double()), entropy(masked)
    assert_no_worse_than_torch(found.entropy_nats, formulas(x).entropy_nats, exact.entropy_nats)
    assert_no_worse_than_torch(found.top1_probability, formulas(x).top1_probability, exact.top1_probability)
    assert torch.equal(found.argmax, 3 * exact.argmax + 1)


@pytest.mark.parametrize(
    "tied", [(0, 1), (3, 4, 1_999), (1_023, 1_024), (1_025, 2_048), (17, 8_191, 8_192), (17, 8_209), (8_193, 20_000), (20_001, 20_010)]
)
def test_ties_go_to_the_lowest_index(entropy: Entropy, tied: tuple[int, ...]) -> None:
    """Exact ties have margin 0 and the first of them is the argmax, in one tile, one lane or any two."""
    x = logits(1, 20_011, 1.0).clamp(max=5)
    x[0, list(tied)] = 9.0
    found = entropy(x)
    assert (found.argmax.item(), found.margin.item()) == (tied[0], 0)


@pytest.mark.parametrize(("best", "second"), [(5, 6), (5, 1_029), (5, 8_197), (8_197, 5), (20_000, 3), (3, 20_000), (9_221, 8_197)])
def test_the_two_largest_may_stand_anywhere(entropy: Entropy, best: int, second: int) -> None:
    """In one lane, one tile, or neither: 9 and 7 are 2 apart."""
    x = logits(1, 20_011, 1.0).clamp(max=5)
    x[0, best], x[0, second] = 9.0, 7.0
    found = entropy(x)
    assert (found.argmax.item(), found.margin.item()) == (best, 2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
def test_no_possible_token(entropy: Entropy) -> None:
    """A row of -inf is NaN, as one with a NaN is."""
    x = logits(3, 777, 1.0)
    x[1] = -inf
    found = entropy(x)
    assert found.entropy_nats.isnan().tolist() == found.margin.isnan().tolist() == [False, True, False]


def test_a_uniform_row(entropy: Entropy) -> None:
    """All 2039 tokens alike: entropy log 2039, probability 1/2039, the first token, margin 0."""
    found = entropy(torch.full((1, 2_039), -4.5))
    assert found.entropy_nats.item() == pytest.approx(log(2_039), rel=1e-6)
    assert found.top1_probability.item() == pytest.approx(1 / 2_039, rel=1e-6)
    assert (found.argmax.item(), found.margin.item()) == (0, 0)


@pytest.mark.parametrize("view", ["columns", "rows", "transposed", "expanded"])
def test_strided_input(entropy: Entropy, view: str) -> None:
    """A view is read as what it shows."""
    big = logits(34, 1_018, 3.0)
    x = {"columns": big[:, ::2], "rows": big[::3, 5:600], "transposed": big[:, :20].T, "expanded": big[:1].expand(6, -1)}[view]
    assert not x.is_contiguous()
    assert_as_good_as_torch(entropy, x)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("poison", [torch.nan, inf])
def test_a_broken_row_stays_alone(entropy: Entropy, poison: float) -> None:
    """A row with NaN (or inf) is NaN in its own entropy and nowhere else."""
    x = logits(8, 777, 3.0)
    whole = entropy(x)
    x[5, 123] = poison
    broken, others = entropy(x), [0, 1, 2, 3, 4, 6, 7]
    assert all(broken[name][5].isnan() for name in (0, 1, 4))
    assert 0 <= broken.argmax[5] < 777
    for before, after in zip(whole, broken, strict=True):
        assert torch.equal(before[others], after[others])


def test_the_input_is_left_alone(entropy: Entropy) -> None:
    """The logits are read, not written."""
    x = logits(3, 100, 1.0)
    before = x.clone()
    entropy(x, vocab=50)
    assert torch.equal(x, before)
