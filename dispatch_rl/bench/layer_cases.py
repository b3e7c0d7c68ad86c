"""What a layer does beside its products, at the sizes of two models of a family: attention, and what stands before and behind it."""

from collections.abc import Callable, Sequence
from math import pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dispatch_rl.bench.case import COMPILED, EAGER, KERNEL, Case, Run, Stored, in_torch_compile
from dispatch_rl.decoding.fused import attend
from dispatch_rl.kernels.operations import REFERENCES, Operations


class _Model(NamedTuple):
    heads: int
    kv_heads: int
    intermediate: int


_MODELS = (_Model(40, 8, 27_648), _Model(12, 2, 8_960))
"""R1-Distill-Qwen-32B and -1.5B."""
_HEAD_DIM = 128
_COLD_BYTES = 256 << 20
"""More than the L2 cache of any GPU holds."""
_CAPACITY = 64
"""Positions of the cache that is written to (tokens); how many there are makes no difference."""
LENGTHS = (512, 4_096)
"""Tokens of the contexts that attention goes over, in caches for twice as many as the longest."""


def layer_cases(kernels: Operations, device: torch.device, tokens: Sequence[int], lengths: Sequence[int], compiled: bool) -> list[Case]:
    """Return the cases of so many new tokens, with attention over contexts of these ``lengths``."""
    normal = _normal(device)

    return [
        *attention_cases(kernels, device, tokens, lengths),
        *(rotation_case(kernels, normal(new, m.heads + 2 * m.kv_heads, _HEAD_DIM), m.kv_heads) for m in _MODELS for new in tokens),
        *(swiglu_case(kernels, normal(new, 2 * m.intermediate), compiled) for m in _MODELS for new in tokens),
    ]


def _normal(device: torch.device) -> Callable[..., Tensor]:
    """Return what makes random bfloat16 tensors of any shape, the same ones every time."""
    generator = torch.Generator(device).manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)


def attention_cases(kernels: Operations, device: torch.device, queries: Sequence[int], lengths: Sequence[int]) -> list[Case]:
    """Return the cases of ``attention`` of so many queries over so many tokens, for every model's heads."""
    normal, capacity = _normal(device), 2 * max(lengths)
    cold_bytes = _COLD_BYTES if device.type == "cuda" else 0
    # All cases share as many layers as the shortest context needs to be cold.
    elements = max(cold_bytes // 2 // min(lengths), 2 * _HEAD_DIM * _MODELS[0].kv_heads) * capacity
    memory = normal(elements)
    return [
        attention_case(kernels, normal(new, heads, _HEAD_DIM), memory.view(-1, 2 * kv_heads, capacity, _HEAD_DIM), length, cold_bytes)
        for heads, kv_heads, _ in _MODELS
        for length in lengths
        for new in queries
    ]


def attention_case(kernels: Operations, q: Tensor, cache: Tensor, length: int, cold_bytes: int) -> Case:
    """Return the case of ``attention`` over the first ``length`` positions of every layer of ``cache [layers, heads, capacity, head_dim]``.

    Torch looks at a slice, so a graph of it stays at this length; or at the whole cache under a mask, which could be written anew.
    """
    new, heads, _ = q.shape
    kv_heads, capacity = cache.shape[1] // 2, cache.shape[2]
    used_bytes = cache[0, :, :length].numel() * cache.element_size()
    layers = [layer.chunk(2) for layer in cache[: max(1, -(-cold_bytes // used_bytes))]]
    on_device = torch.tensor([length], device=q.device)
    hidden = torch.full((new, capacity), -torch.inf, dtype=q.dtype, device=q.device).triu(length - new + 1)
    mask = hidden.repeat(1, 1, heads // kv_heads, 1)

    def ours() -> Tensor:
        return [kernels.attention(q, keys, values, on_device) for keys, values in layers][-1]

    def by_torch(looked_at: int) -> Tensor:
        seen = None if new == 1 and looked_at == length else mask[..., :looked_at]
        rows = q.transpose(0, 1)[None]
        found = [attend(rows, k[None, :, :looked_at], v[None, :, :looked_at], seen, False) for k, v in layers]
        return found[-1][0].transpose(0, 1)

    providers: dict[str, Run] = {
        KERNEL: ours,
        EAGER: lambda: by_torch(length),
        "torch graph": lambda: by_torch(length),
        "torch whole cache": lambda: by_torch(capacity),
    }
    moved = used_bytes + 2 * q.nbytes
    return Case(f"attention {heads}/{kv_heads}, {length} tokens", new, length, providers, moved, by_graph=True, calls=len(layers))


def rotation_case(kernels: Operations, qkv: Tensor, kv_heads: int) -> Case:
    """Return the case of ``rotate_and_store`` on ``qkv [tokens, heads + 2 * kv_heads, head_dim]``, which lies in the L2 cache."""
    tokens, every, head_dim = qkv.shape
    angles = torch.linspace(0, 2 * pi, tokens * head_dim // 2, device=qkv.device).view(tokens, 1, head_dim // 2)
    cos, sin = angles.cos().repeat(1, 1, 2).to(qkv.dtype), torch.cat([-angles.sin(), angles.sin()], dim=-1).to(qkv.dtype)
    where = torch.arange(tokens, device=qkv.device) + _CAPACITY // 2

    def run(rotate: Callable[..., Tensor]) -> Run:
        # Each has its own, since queries are turned in place, again and again.
        mine, buffer = qkv.clone(), qkv.new_zeros(2 * kv_heads, _CAPACITY, head_dim)
        return lambda: Stored(rotate(mine, cos, sin, buffer, where), buffer)

    providers = {
        KERNEL: run(kernels.rotate_and_store),
        EAGER: run(REFERENCES.rotate_and_store),
        "torch graph": run(rotate_step_by_step),
    }
    moved = 2 * qkv.nbytes + cos.nbytes + sin.nbytes
    return Case(f"rotate_and_store {every - 2 * kv_heads}/{kv_heads}", tokens, every * head_dim, providers, moved, by_graph=True)


def rotate_step_by_step(qkv: Tensor, cos: Tensor, sin: Tensor, buffer: Tensor, where: Tensor) -> Tensor:
    """Do what ``rotate_and_store`` does as an eager pass does it, rounding each time."""
    heads, kv_heads = qkv.shape[1] - len(buffer), len(buffer) // 2
    qk = qkv[:, : heads + kv_heads]
    others = qk.roll(qk.shape[-1] // 2, -1)
    qk.mul_(cos).addcmul_(others, sin)
    buffer.index_copy_(1, where, qkv[:, heads:].transpose(0, 1))
    return qkv[:, :heads]


def swiglu_case(kernels: Operations, gate_up: Tensor, compiled: bool) -> Case:
    """Return the case of ``swiglu`` on ``gate_up [tokens, 2 * size]``, which lies in the L2 cache."""
    tokens, columns = gate_up.shape
    gate, up = gate_up.chunk(2, dim=-1)
    providers: dict[str, Run] = {
        KERNEL: lambda: kernels.swiglu(gate_up),
        EAGER: lambda: REFERENCES.swiglu(gate_up),
        "torch graph": lambda: F.silu(gate).mul_(up),
    }
    if compiled:
        providers[COMPILED] = in_torch_compile(lambda: REFERENCES.swiglu(gate_up))
    return Case("swiglu", tokens, columns, providers, gate_up.nbytes * 3 // 2, by_graph=True)
