"""Between a layer's first product and its attention: queries and keys are turned by their positions, keys and values go to the cache."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class HeadNorms(NamedTuple):
    """How a model that does so divides every query and every key by its root mean square, before it turns them."""

    q_weight: Tensor
    """What queries are multiplied by after that ``[head_dim]``."""
    k_weight: Tensor
    """Likewise keys."""
    eps: float
    """Added to the mean of the squares."""


def rotate_and_store(qkv: Tensor, cos: Tensor, sin: Tensor, buffer: Tensor, where: Tensor, norms: HeadNorms | None = None) -> Tensor:
    """Turn the queries in place, write the turned keys and the values to the cache, and return the queries ``[tokens, heads, head_dim]``.

    Every pair ``(x_i, x_{i + head_dim / 2})`` of a query or a key is turned by an angle,

        turned = x cos + other sin,

    where ``other`` is the other of the pair and ``sin`` has the sign with which it enters. All is computed in float32, the norms included,
    and rounded once, at the end. An eager pass rounds after the norm, after the first product and after the sum.

    Args:
        qkv: Queries, keys and values of the new tokens ``[tokens, heads + 2 * kv_heads, head_dim]``; the queries are overwritten.
        cos: Cosines ``[tokens, 1, head_dim]``.
        sin: Sines, those of the first half of a head with the other sign, likewise.
        buffer: The cache, keys before values ``[2 * kv_heads, capacity, head_dim]``.
        where: Position in the cache of every token, int64 ``[tokens]``: all different, and each below the capacity.
        norms: The model's.
    """
    both = len(buffer)
    heads = qkv.shape[1] - both
    q, k, v = qkv[:, :heads], qkv[:, heads : heads + both // 2], qkv[:, heads + both // 2 :]
    queries, keys = q.float(), k.float()
    if norms is not None:
        queries = F.rms_norm(queries, queries.shape[-1:], norms.q_weight.float(), norms.eps)
        keys = F.rms_norm(keys, keys.shape[-1:], norms.k_weight.float(), norms.eps)
    x = torch.cat([queries, keys], dim=1)
    turned = (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin.float()).to(qkv.dtype)
    q.copy_(turned[:, :heads])
    buffer.index_copy_(1, where, torch.cat([turned[:, heads:], v], dim=1).transpose(0, 1))
    return q
