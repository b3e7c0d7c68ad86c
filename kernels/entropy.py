"""Entropy and the other things that a row of logits tells about how sure a model is."""

from typing import NamedTuple

import torch
from torch import Tensor

_NEGLIGIBLE = -1e3
"""A logit this far below the largest has probability zero in float32."""


class RowStatistics(NamedTuple):
    """What :func:`entropy` finds in each row; every tensor is ``[rows]``."""

    entropy_nats: Tensor
    """``-sum(p * log p)`` with ``p = softmax(logits)`` (nats)."""
    top1_probability: Tensor
    """The largest probability."""
    margin: Tensor
    """Difference of the two largest logits (nats); infinite when only one is finite."""
    argmax: Tensor
    """Index of the largest logit, the lowest on ties."""
    logsumexp: Tensor
    """``log(sum(exp(logits)))``."""


def entropy(logits: Tensor, vocab: int | None = None) -> RowStatistics:
    """Return the statistics of each row of ``logits [rows, vocab]``, computed in float32.

    With ``d = logits - max`` and ``z = sum(exp(d))``: ``log p = d - log z``, so the entropy is ``log z - sum(exp(d) * d) / z``, a sum of
    two terms of which neither is negative.

    Args:
        logits: Unnormalised log-probabilities of at least two tokens; ``-inf`` marks impossible ones. A row without a possible token,
            or with a NaN, gives NaN.
        vocab: Use only the first ``vocab`` columns.
    """
    x = logits[:, :vocab].float()
    best = x.topk(2, dim=-1).values
    # Relative to the largest logit, so that large logits cost no accuracy. An impossible token adds nothing, but 0 * -inf would be NaN.
    below = (x - best[:, :1]).clamp_(min=_NEGLIGIBLE)
    weights = below.exp()
    total = weights.sum(-1)
    log_sum = total.log()
    return RowStatistics(
        entropy_nats=log_sum - torch.linalg.vecdot(weights, below) / total,
        top1_probability=(-log_sum).exp(),
        margin=best[:, 0] - best[:, 1],
        argmax=x.argmax(-1),
        logsumexp=best[:, 0] + log_sum,
    )
