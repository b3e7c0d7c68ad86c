"""One operation on one input, in all the ways in which it is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dispatch_rl.errors import UserError
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.verify import Verified

KERNEL, EAGER, COMPILED = "kernel", "torch eager", "torch.compile"
Run = Callable[[], Any]


class Stored(NamedTuple):
    """What an operation leaves in two places."""

    result: Tensor
    cache: Tensor


@dataclass(frozen=True)
class Case:
    """One operation on one input."""

    operation: str
    rows: int
    columns: int
    """Of each row: tokens of the vocabulary or of the context, or elements that are read."""
    providers: dict[str, Run]
    """What computes it, by name."""
    moved_bytes: int
    """The fewest bytes that must be read and written in a call."""
    by_graph: bool
    """Whether it is so short that it is timed by replaying a CUDA graph."""
    calls: int = 1
    """How often a provider does it, each time on other memory, where what it reads must not lie in the L2 cache."""

    def check(self) -> None:
        """See that the kernel gives what torch gives.

        Raises:
            UserError: They differ.
        """
        ours, theirs = self.providers[KERNEL](), self.providers[EAGER]()
        if not _AGREE[type(ours)](ours, theirs):
            raise UserError(
                f"{self.operation} [{self.rows}, {self.columns}]: the kernel disagrees with its reference; no speed is reported"
            )


def _statistics_agree(ours: RowStatistics, theirs: RowStatistics) -> bool:
    close = (torch.allclose(a, b, atol=1e-4, rtol=1e-5) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point())
    return torch.equal(ours.argmax, theirs.argmax) and all(close)


def _verified_agree(ours: Verified, theirs: Verified) -> bool:
    return torch.equal(ours.packed[:3], theirs.packed[:3]) and _statistics_agree(ours.statistics, theirs.statistics)


def _nearly_equal(ours: Tensor, theirs: Tensor) -> bool:
    # Each rounds to bfloat16, which has 8 bits, on its own way.
    return bool((ours - theirs).abs().max() <= 2**-6 * theirs.abs().max())


def _stored_agree(ours: Stored, theirs: Stored) -> bool:
    return all(map(_nearly_equal, ours, theirs))


_AGREE: dict[type, Callable[[Any, Any], bool]] = {
    Verified: _verified_agree,
    RowStatistics: _statistics_agree,
    Stored: _stored_agree,
    Tensor: _nearly_equal,
}


def in_torch_compile(run: Run) -> Run:
    """Return the same by torch.compile."""
    by_torch: Run = torch.compile(run)
    return by_torch
