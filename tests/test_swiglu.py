"""The activation is as exact as torch's own, whatever its input looks like: the reference's and the kernel's."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dispatch_rl.kernels import swiglu as reference
from dispatch_rl.kernels import swiglu_triton
from dispatch_rl.kernels.operations import REFERENCES, kernels
from tests.helpers import DEVICE, assert_no_worse_than_torch, poisoned, rounding

Swiglu = Callable[[Tensor], Tensor]


def kernel(gate_up: Tensor) -> Tensor:
    """Run the kernel where it can run, in poisoned memory."""
    with poisoned():
        return swiglu_triton.swiglu(gate_up.to(DEVICE)).cpu()


@pytest.fixture(params=["reference", "kernel"])
def swiglu(request: pytest.FixtureRequest) -> Swiglu:
    """The reference, and the kernel: compiled where there is a GPU, else in Triton's interpreter."""
    return reference.swiglu if request.param == "reference" else kernel


def inputs(tokens: int, size: int, dtype: torch.dtype = torch.float32, scale: float = 3) -> Tensor:
    """Return normal numbers ``[tokens, 2 * size]``."""
    return (scale * torch.randn(tokens, 2 * size, generator=torch.Generator().manual_seed(tokens + size))).to(dtype)


def formula(gate_up: Tensor) -> Tensor:
    """Return the activation in float64."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + (-gate).exp()) * up


def by_torch(gate_up: Tensor) -> Tensor:
    """Return what an eager pass computes, in its two steps."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def test_an_example_by_hand(swiglu: Swiglu) -> None:
    """``silu(0) = 0``, ``silu(log 3) = 3/4 log 3`` and ``silu(-log 3) = -1/4 log 3``."""
    log3 = 1.0986123
    found = swiglu(torch.tensor([[0.0, log3, -log3, 9.0, 4.0, 8.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 3 * log3, -2 * log3]]))


@pytest.mark.parametrize(("tokens", "size"), [(1, 8_960), (6, 512), (17, 513), (3, 1), (2, 511)])
def test_no_worse_than_torch(swiglu: Swiglu, tokens: int, size: int) -> None:
    """Every error is at most twice torch's own; around the borders of tiles, whose rest is not written."""
    x = inputs(tokens, size)
    found = swiglu(x)
    assert found.shape == (tokens, size)
    assert found.dtype == torch.float32
    assert_no_worse_than_torch(found, by_torch(x), formula(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
def test_half_precision(swiglu: Swiglu, tokens: int, dtype: torch.dtype) -> None:
    """It is rounded once; float32 adds far less than a sixteenth of that."""
    x = inputs(tokens, 700, dtype)
    found, exact, limits = swiglu(x), formula(x), torch.finfo(dtype)
    assert found.dtype == dtype
    bound = 17 / 16 * rounding(dtype, swiglu is kernel) * exact.abs() + limits.smallest_normal * limits.eps
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of numpy, in the interpreter
def test_gates_that_are_wide_open_or_closed(swiglu: Swiglu) -> None:
    """From where nothing passes any more, though the exponential is beyond float32, to where everything does."""
    gates = torch.tensor([-1e30, -1e4, -200.0, -104.0, -80.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 88.0, 1e4, 1e30])
    x = torch.cat([gates, torch.full_like(gates, 2.0)])[None]
    torch.testing.assert_close(swiglu(x).double(), formula(x).nan_to_num(), rtol=2e-5, atol=1e-35)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter
def test_nan_and_infinity_stay_where_they_are(swiglu: Swiglu) -> None:
    """As with torch: they spoil their own column of their own token."""
    x = inputs(3, 600)
    clean = swiglu(x)
    x[0, 5], x[1, 600 + 7], x[2, 9] = torch.nan, torch.nan, torch.inf
    found = swiglu(x)
    assert found.isfinite().logical_not().nonzero().tolist() == [[0, 5], [1, 7], [2, 9]]
    assert torch.equal(found.where(found.isfinite(), 0), clean.where(found.isfinite(), 0))


@pytest.mark.parametrize("layout", ["part", "columns first"])
def test_strided_input(swiglu: Swiglu, layout: str) -> None:
    """A part of something wider, or a transposed product; it is read, not written."""
    x, wide = inputs(4, 96), torch.full((8, 200), torch.nan)
    strided = wide[::2, 5:197] if layout == "part" else torch.empty(192, 4).t()
    strided[:] = x
    assert torch.equal(swiglu(strided), swiglu(x))
    assert torch.equal(strided, x)


def test_it_is_an_operation() -> None:
    """The reference here, the kernel there."""
    assert REFERENCES.swiglu is reference.swiglu
    assert kernels().swiglu is swiglu_triton.swiglu
