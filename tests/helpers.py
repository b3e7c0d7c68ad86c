"""What several tests measure with."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

FALSE_ALARM = 1e-6
"""How often a statistical test would be red by chance; seeds are fixed, so the chance is taken once."""

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where kernels are tested: compiled on a GPU, else in Triton's interpreter."""
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, or the largest integer, so that what a kernel forgets to write is seen."""
    # Only a warning where an operation beside the kernel has no deterministic form on the device, as sums along a row.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_no_worse_than_torch(ours: Tensor, torch_result: Tensor, exact: Tensor, factor: float = 2) -> None:
    """Assert that the largest error of ``ours`` is at most ``factor`` times torch's own in float32.

    Torch may happen to be exact, so four units in the last place of the largest float32 result are always allowed. NaN is red.
    """
    assert exact.dtype == torch.float64
    few_ulp = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    error, torch_error = (ours.double() - exact).abs().max(), (torch_result.double() - exact).abs().max()
    assert error <= factor * torch_error + few_ulp, f"error {error:.3g}, torch's own {torch_error:.3g}"


def rounding(dtype: torch.dtype, by_kernel: bool) -> float:
    """Return by how much of a number it is changed at most when it is rounded to ``dtype`` once.

    That is half a unit in the last place; but Triton's interpreter cuts bfloat16 off, by up to a whole one.
    """
    cut = by_kernel and DEVICE.type == "cpu" and dtype == torch.bfloat16
    return torch.finfo(dtype).eps / (1 if cut else 2)


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, float]:
    """Return Pearson's statistic of independent rows of counts, and what it exceeds with probability :data:`FALSE_ALARM`.

    Rows where some possible outcome is expected fewer than five times are left out: their statistic has another law.

    Args:
        counts: How often each outcome was seen ``[rows, outcomes]``; an impossible outcome that was seen fails at once.
        probabilities: The law of each row ``[rows, outcomes]``.
    """
    possible = probabilities > 0
    assert not counts[~possible].any(), "an impossible outcome was seen"
    expected = counts.sum(-1, keepdim=True) * probabilities.double()
    enough = expected.masked_fill(~possible, torch.inf).amin(-1) >= 5
    assert enough.any(), "too few counts"
    terms = ((counts - expected) ** 2 / expected).where(possible, 0)[enough]
    freedom = int((possible[enough].sum(-1) - 1).sum())
    return float(terms.sum()), float(chi2.isf(FALSE_ALARM, freedom))
