"""The operations of a device: kernels on a GPU, their references everywhere else. Asked for once, when decoding begins."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from dispatch_rl.kernels import attention, dispatch, entropy, noise, rotate_and_store, swiglu, verify
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
    rotate_and_store: Callable[..., Tensor]
    """:func:`dispatch_rl.kernels.rotate_and_store.rotate_and_store`."""
    swiglu: Callable[..., Tensor]
    """:func:`dispatch_rl.kernels.swiglu.swiglu`."""
    uniform: Callable[..., Tensor]
    """:func:`dispatch_rl.kernels.noise.uniform`, with a seed and a draw that are tensors of one number."""
    compiled: bool
    """Whether they are kernels, for which it pays to stay on the device."""


class KernelWarning(UserWarning):
    """A GPU does without kernels, though Triton is there."""


@cache
def operations(device: torch.device) -> Operations:
    """Return the operations of ``device``; of a GPU that Triton cannot compile for, after one :class:`KernelWarning`, the references."""
    if device.type != "cuda" or find_spec("triton") is None:
        return REFERENCES
    try:
        found = kernels()
        # Triton needs a C compiler and Python's headers, and misses them only when something is launched.
        found.swiglu(torch.zeros(1, 2, device=device))
    except Exception as error:
        reason, *_ = f"{type(error).__name__}: {error}".splitlines()
        warnings.warn(f"{device} without kernels and CUDA graphs, as Triton cannot compile ({reason})", KernelWarning, stacklevel=2)
        return REFERENCES
    return found


@cache
def kernels() -> Operations:
    """Return the Triton kernels. Imports Triton, which is not everywhere."""
    from dispatch_rl.kernels import (
        attention_triton,
        dispatch_triton,
        entropy_triton,
        noise_triton,
        rotate_and_store_triton,
        swiglu_triton,
        verify_triton,
    )

    return Operations(
        entropy=entropy_triton.entropy,
        verify=verify_triton.verify,
        dispatch=dispatch_triton.dispatch,
        attention=attention_triton.attention,
        rotate_and_store=rotate_and_store_triton.rotate_and_store,
        swiglu=swiglu_triton.swiglu,
        uniform=noise_triton.uniform,
        compiled=True,
    )


REFERENCES = Operations(
    entropy=entropy.entropy,
    verify=verify.verify,
    dispatch=dispatch.dispatch,
    attention=attention.attention,
    rotate_and_store=rotate_and_store.rotate_and_store,
    swiglu=swiglu.swiglu,
    uniform=noise.uniform,
    compiled=False,
)
