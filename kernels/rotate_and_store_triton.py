"""The Triton kernel of :func:`dispatch_rl.kernels.rotate_and_store.rotate_and_store`: a program for every head of every token.

A lane holds both of a pair. So no lane waits for what another has read, the queries can be overwritten, and heads whose size is not a power
of two have their halves side by side all the same.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from dispatch_rl.kernels.entropy_triton import OPTIONS
from dispatch_rl.kernels.rotate_and_store import HeadNorms


def rotate_and_store(qkv: Tensor, cos: Tensor, sin: Tensor, buffer: Tensor, where: Tensor, norms: HeadNorms | None = None) -> Tensor:
    """Do what the reference does, in one launch: float32, bfloat16 or float16, the same in ``qkv`` and ``buffer``.

    Strides may be any, but for those of ``head_dim``, which are 1. Keys and values in ``qkv`` stay as they are.

    Raises:
        ValueError: The elements of a head do not lie side by side, or one is left over.
    """
    tokens, every, head_dim = qkv.shape
    both, _, _ = buffer.shape
    weights = (qkv, qkv) if norms is None else norms[:2]
    if any(x.stride(-1) != 1 for x in (qkv, cos, sin, buffer, *weights)):
        raise ValueError("the kernel needs the elements of a head side by side")
    if head_dim % 2:
        raise ValueError(f"the kernel turns pairs, and {head_dim} is odd")
    half = head_dim // 2
    with torch.cuda.device_of(qkv):
        _rotate_and_store_kernel[(tokens, every)](
            qkv, *qkv.stride()[:2], cos, cos.stride(0), sin, sin.stride(0), buffer, *buffer.stride()[:2], where, where.stride(0),
            *weights, every - both, both // 2, 0.0 if norms is None else norms.eps, norms is not None,
            half, triton.next_power_of_2(half), num_warps=1, **OPTIONS,
        )  # fmt: skip
    return qkv[:, : every - both]


@triton.jit
def _pair(x, mask, HALF: tl.constexpr):
    """Return what ``x`` points to and what lies half a head behind it, in float32."""
    return tl.load(x, mask=mask, other=0.0).to(tl.float32), tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _rotate_and_store_kernel(
    qkv, stride, head_stride, cos, cos_stride, sin, sin_stride, buffer, buffer_head_stride, buffer_stride, where, where_stride,
    q_weight, k_weight, heads, kv_heads, EPS: tl.constexpr, NORMED: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Nothing waits for a branch: all that is read is asked for at once, also by heads of values, which need neither angles nor norms."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    unit = tl.arange(0, WIDTH)
    mask = unit < HALF
    source = qkv + token * stride + head * head_stride + unit
    place = tl.load(where + token * where_stride).to(tl.int64)
    first, second = _pair(source, mask, HALF)
    cos_first, cos_second = _pair(cos + token * cos_stride + unit, mask, HALF)
    sin_first, sin_second = _pair(sin + token * sin_stride + unit, mask, HALF)
    x, y = first, second
    if NORMED:
        x_weight, y_weight = _pair(tl.where(head < heads, q_weight, k_weight) + unit, mask, HALF)
        scale = 1.0 / tl.sqrt(tl.sum(x * x + y * y, axis=0) / (2 * HALF) + EPS)
        x, y = x * scale * x_weight, y * scale * y_weight
    is_value = head >= heads + kv_heads
    first = tl.where(is_value, first, x * cos_first + y * sin_first).to(qkv.dtype.element_ty)
    second = tl.where(is_value, second, y * cos_second + x * sin_second).to(qkv.dtype.element_ty)
    cached = buffer + (head - heads) * buffer_head_stride + place * buffer_stride + unit
    target = tl.where(head < heads, source, cached)
    tl.store(target, first, mask=mask)
    tl.store(target + HALF, second, mask=mask)
