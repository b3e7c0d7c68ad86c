"""How clear a choice is."""

import torch
from torch import Tensor


def two_best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much the best of every row of ``scores [rows, vocab]`` is ahead, and which the second best is ``[rows]``."""
    best = scores.topk(2)
    return best.values[:, 0] - best.values[:, 1], best.indices[:, 1]


def entropies_nats(logits: Tensor) -> Tensor:
    """Return the entropies of the rows of ``logits [rows, vocab]``."""
    entropies: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return entropies
