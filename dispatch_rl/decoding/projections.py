"""What the fused forward pass is made of: products with weights and norms, in as few operations as the device allows."""

from collections.abc import Sequence
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_READ_AHEAD_BYTES = 2 << 20
"""Larger weights would not stay near until they are multiplied."""
_FAR_BYTES = 32 << 20
"""Reading so much drives a small model's weights out of a core's caches, as the family's other models do."""
_ROWS = (1, 5)
"""Tokens of the passes that are timed: a draft step, and a verification."""
_TRIALS = 5


class Linear:
    """A projection by a weight ``[outputs, inputs]`` that the model holds."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight.data.t(), bias
        self.small = _on_plain_cpu(weight) and weight.nbytes <= _READ_AHEAD_BYTES
        """Whether the weight can be read ahead of its product."""
        self.reads_ahead = False
        """Whether it is; :func:`choose_order` says."""

    def __call__(self, x: Tensor) -> Tensor:
        if self.reads_ahead:
            self._weight.sum()
        return torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)

    def add_to(self, sums: Tensor, x: Tensor) -> None:
        """Add the outputs for ``x`` to ``sums``."""
        if self.reads_ahead:
            self._weight.sum()
        sums.addmm_(x, self._weight)
        if self._bias is not None:
            sums.add_(self._bias)

    def ones(self, rows: int) -> Tensor:
        """Return something to multiply ``[rows, inputs]``."""
        return self._weight.new_ones(rows, len(self._weight))


class Norm:
    """Divides rows by their root mean square and multiplies them by a weight."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps, self._shape = weight.data, eps, weight.shape
        self._short = _on_plain_cpu(weight)
        size = len(weight)
        self._scaled = self._weight * size**0.5 if self._short else self._weight
        self._root = torch.tensor((size * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._short:
            return F.rms_norm(x, self._shape, self._weight, self._eps)
        # Without a kernel of its own, a CPU does rms_norm in seven operations; these are four.
        return (x * self._scaled).div_(torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._root))


def fuse(linears: list[nn.Linear]) -> Linear:
    """Stack the weights of ``linears``, which from then on are views of the stack: nothing is held twice."""
    stacked: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts = [getattr(linear, name) for linear in linears]
        if parts[0] is None:
            stacked.append(None)
            continue
        whole = torch.cat([part.data for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
        stacked.append(whole)
    weight, bias = stacked
    assert weight is not None
    return Linear(weight, bias)


@torch.inference_mode()
def choose_order(linears: Sequence[Linear]) -> None:
    """Read the weights of a model ahead of their products if that is faster on this machine; no bit of a result depends on it.

    A sum goes through a weight from front to back, which brings it near. Some CPUs' products of few rows would wait for it far longer
    than that takes (a third of a draft step on an AMD EPYC); others' do not (on an Intel Xeon it costs a tenth). Each pass is timed after
    other memory has been read, as models take turns: what was multiplied just before is still near, and reading it only costs.
    """
    small = [linear for linear in linears if linear.small]
    if not small:
        return
    elsewhere = torch.zeros(_FAR_BYTES // 4)
    work = [[(linear, linear.ones(rows)) for linear in small] for rows in _ROWS]
    least = {ahead: [float("inf")] * len(_ROWS) for ahead in (False, True)}
    for ahead in (False, True) * _TRIALS:
        for linear in small:
            linear.reads_ahead = ahead
        for index, products in enumerate(work):
            elsewhere.sum()
            began = perf_counter()
            for linear, x in products:
                linear(x)
            least[ahead][index] = min(perf_counter() - began, least[ahead][index])
    for linear in small:
        linear.reads_ahead = sum(least[True]) < sum(least[False])


def _on_plain_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
