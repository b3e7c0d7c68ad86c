"""The Triton kernel of :func:`dispatch_rl.kernels.swiglu.swiglu`: a program for every few columns of every token."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.entropy_triton import OPTIONS

TILE = 512
"""Columns of a program: 16 bytes of bfloat16 for each of its threads, and 18 programs for a token of R1-Distill-Qwen-1.5B."""


def swiglu(gate_up: Tensor) -> Tensor:
    """Do what the reference does, in one launch; any strides, float32, bfloat16 or float16."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((tokens, size))
    with torch.cuda.device_of(gate_up):
        _swiglu_kernel[(tokens, triton.cdiv(size, TILE))](gate_up, *gate_up.stride(), out, size, TILE, num_warps=2, **OPTIONS)
    return out


@triton.jit
def _swiglu_kernel(gate_up, stride, column_stride, out, size, TILE: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = column < size
    gates = gate_up + token * stride + column * column_stride
    gate = tl.load(gates, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gates + size * column_stride, mask=mask, other=0.0).to(tl.float32)
    mixed = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * size + column, mixed.to(out.dtype.element_ty), mask=mask)
