"""What the models of a family minimise."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def joint_losses(models: nn.ModuleDict, tokens: Tensor, distillation: float, student_stride: int) -> Tensor:
    """Return the losses of all ``models`` ``[models]`` on ``tokens [rows, window + 1]``, the target's first.

    A student minimises ``(1 - w) * cross-entropy + w * KL(p_target || q_student)`` on every ``student_stride``-th row; no
    gradient reaches the target through it.
    """
    logits = models["target"](tokens[:, :-1], use_cache=False).logits.float()
    losses = [F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())]
    inputs, labels = tokens[::student_stride, :-1], tokens[::student_stride, 1:].flatten()
    taught = logits.detach()[::student_stride].flatten(0, 1)
    for student in _students(models):
        learned = student(inputs, use_cache=False).logits.float().flatten(0, 1)
        cross_entropy = F.cross_entropy(learned, labels)
        losses.append((1 - distillation) * cross_entropy + distillation * divergence(taught, learned, (1.0,)))
    return torch.stack(losses)


def last_losses(models: nn.ModuleDict, tokens: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return the students' divergences from the finished target ``[students]`` on ``tokens [rows, window + 1]``."""
    with torch.no_grad():
        taught = models["target"](tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    learned = (student(tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1) for student in _students(models))
    return torch.stack([divergence(taught, logits, temperatures) for logits in learned])


def divergence(taught: Tensor, learned: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return ``KL(softmax(taught / T) || softmax(learned / T))`` of logits ``[tokens, vocab]``, the mean over tokens and temperatures."""
    pairs = [((learned / t).log_softmax(-1), (taught / t).log_softmax(-1)) for t in temperatures]
    return torch.stack([F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) for log_q, log_p in pairs]).mean()


def _students(models: nn.ModuleDict) -> Iterator[nn.Module]:
    return (model for name, model in models.items() if name != "target")
