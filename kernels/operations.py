"""The operations of a device: kernels on a GPU, their references everywhere else. Asked for once, when decoding begins."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from dispatch_rl.kernels import attention, dispatch, entropy, noise, verify
from dispatch_rl.kernels.entropy import RowStatistics
from dispatch_rl.kernels.verify import Verified


@dataclass(frozen=True)
class Operations:
    """What decoding does itself, under the references' names and signatures."""

    entropy: Callable[..., RowStatistics]
    """:func:`dispatch_rl.kernels.entropy.entropy`."""
    verify: Callable[..., Verified]
    """:func:`dispatch_rl.kernels.verify.verify`."""
    dispatch: Callable[..., Tensor]
    """:func:`dispatch_rl.kernels.dispatch.dispatch`."""
    attention: Callable[..., Tensor]
    """:func:`dispatch_rl.kernels.attention.attention`."""
    uniform: Callable[..., Tensor]
    """:func:`dispatch_rl.kernels.noise.uniform`, with a seed and a draw that are tensors of one number."""
    compiled: bool
    """Whether they are kernels, for which it pays to stay on the device."""


def operations(device: torch.device) -> Operations:
    """Return the operations of ``device``."""
    return kernels() if device.type == "cuda" and find_spec("triton") is not None else REFERENCES


@cache
def kernels() -> Operations:
    """Return the Triton kernels. Imports Triton, which is not everywhere."""
    from dispatch_rl.kernels import attention_triton, dispatch_triton, entropy_triton, noise_triton, verify_triton

    made = (entropy_triton.entropy, verify_triton.verify, dispatch_triton.dispatch, attention_triton.attention, noise_triton.uniform)
    return Operations(*made, compiled=True)


REFERENCES = Operations(entropy.entropy, verify.verify, dispatch.dispatch, attention.attention, noise.uniform, compiled=False)
