"""How clear a choice is."""

import torch
from torch import Tensor


def two_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much the best of every row of ``scores [rows, vocab]`` is ahead, in float32, and which the second best is ``[rows]``."""
    best = scores.topk(2)
    values = best.values.float()
    return values[:, 0] - values[:, 1], best.indices[:, 1]


def entropies_nats(logits: Tensor) -> Tensor:
    """Return the entropies of the rows of ``logits [rows, vocab]`` in float32, as recordings hold them."""
    entropies: Tensor = torch.special.entr(logits.softmax(-1, dtype=torch.float32)).sum(-1)
    return entropies
