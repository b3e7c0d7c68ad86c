"""Entropy and the other things that a row of logits tells about how sure a model is."""

from typing import NamedTuple

import torch
from torch import Tensor


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

    Args:
        logits: Unnormalised log-probabilities; ``-inf`` marks impossible tokens.
        vocab: Use only the first ``vocab`` columns.
    """
    x = logits[:, :vocab].float()
    logsumexp = x.logsumexp(-1)
    p = (x - logsumexp[:, None]).exp()
    best = x.topk(2, dim=-1).values
    return RowStatistics(
        entropy_nats=torch.special.entr(p).sum(-1),
        top1_probability=(best[:, 0] - logsumexp).exp(),
        margin=best[:, 0] - best[:, 1],
        argmax=x.argmax(-1),
        logsumexp=logsumexp,
    )
