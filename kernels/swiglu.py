"""The activation between the last two products of a layer."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) up`` with ``silu(x) = x / (1 + exp(-x))``, in float32 and rounded once. An eager pass rounds twice.

    Args:
        gate_up: The gates and behind them what they let through ``[tokens, 2 * size]``.

    Returns:
        ``[tokens, size]``.
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    return F.silu(gate).mul_(up).to(gate_up.dtype)
