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
    log_p = logits.detach()[::student_stride].flatten(0, 1).log_softmax(-1)
    for student in _students(models):
        log_q = student(inputs, use_cache=False).logits.float().flatten(0, 1).log_softmax(-1)
        losses.append((1 - distillation) * F.nll_loss(log_q, labels) + distillation * _divergence(log_p, log_q))
    return torch.stack(losses)


def last_losses(models: nn.ModuleDict, tokens: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return the students' divergences from the finished target ``[students]`` on ``tokens [rows, window + 1]``.

    That is ``KL(softmax(target / T) || softmax(student / T))`` of their logits, the mean over tokens and ``temperatures``.
    """
    with torch.no_grad():
        logits = models["target"](tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        log_p = [(logits / t).log_softmax(-1) for t in temperatures]
    losses = []
    for student in _students(models):
        logits = student(tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        apart = [_divergence(known, (logits / t).log_softmax(-1)) for known, t in zip(log_p, temperatures, strict=True)]
        losses.append(torch.stack(apart).mean())
    return torch.stack(losses)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``KL(p || q)`` of log-probabilities ``[tokens, vocab]``, the mean over tokens."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _students(models: nn.ModuleDict) -> Iterator[nn.Module]:
    return (model for name, model in models.items() if name != "target")
