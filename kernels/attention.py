"""Attention of a few new tokens over a long cache: what decoding does in every layer."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, keys: Tensor, values: Tensor, length: Tensor, visible: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return what each query takes from the values, ``softmax(q k / sqrt(head_dim)) v`` over the positions it sees, in float32 within.

    Every query sees all positions before the new ones, and of the new ones those that ``visible`` says, itself always. Heads share keys:
    query head ``h`` reads the keys of head ``h // (heads / kv_heads)``.

    Args:
        q: The queries of the tokens that were just written to the cache ``[queries, heads, head_dim]``.
        keys: The cache ``[kv_heads, capacity, head_dim]``; what lies at ``length`` and beyond is never looked at.
        values: Likewise.
        length: Number of valid positions with the new ones, which are the last ``queries`` of them: one integer on the device.
        visible: Whether query ``i`` sees new position ``j``, bool or uint8 ``[queries, queries]``; None means ``j <= i``.
        out: Where to write ``[queries, heads, head_dim]``; it is also returned.
    """
    new, used = len(q), int(length)
    itself = torch.eye(new, dtype=torch.bool, device=q.device)
    among_new = itself.new_ones(new, new).tril() if visible is None else visible.bool() | itself
    seen = torch.cat([itself.new_ones(new, used - new), among_new], dim=1)
    each_head, k, v = (x.float()[None] for x in (q.transpose(0, 1), keys[:, :used], values[:, :used]))
    mixed = F.scaled_dot_product_attention(each_head, k, v, attn_mask=seen, enable_gqa=True)[0].transpose(0, 1)
    return mixed.to(q.dtype) if out is None else out.copy_(mixed)
