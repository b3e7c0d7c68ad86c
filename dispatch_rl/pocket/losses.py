"""What the models of a family minimise."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Divergence = Callable[[Tensor, Tensor, tuple[float, ...]], Tensor]


def divergence(target: Tensor, student: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return ``KL(softmax(target / T) || softmax(student / T))`` of logits ``[tokens, vocab]``, the mean over tokens and temperatures."""
    apart = []
    for temperature in temperatures:
        log_p, log_q = (target / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
        apart.append(F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))
    return torch.stack(apart).mean()


def joint_losses(
    models: nn.ModuleDict, tokens: Tensor, distillation: float, student_stride: int, divergence: Divergence = divergence
) -> Tensor:
    """Return the losses of all ``models`` ``[models]`` on ``tokens [rows, window + 1]``, the target's first.

    A student minimises ``(1 - w) * cross-entropy + w * KL(p_target || q_student)`` on every ``student_stride``-th row; no
    gradient reaches the target through it.
    """
    logits = models["target"](tokens[:, :-1], use_cache=False).logits.float()
    losses = [F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())]
    inputs, labels = tokens[::student_stride, :-1], tokens[::student_stride, 1:].flatten()
    known = logits.detach()[::student_stride].flatten(0, 1)
    for student in _students(models):
        logits = student(inputs, use_cache=False).logits.float().flatten(0, 1)
        losses.append((1 - distillation) * F.cross_entropy(logits, labels) + distillation * divergence(known, logits, (1.0,)))
    return torch.stack(losses)


def last_losses(models: nn.ModuleDict, tokens: Tensor, temperatures: tuple[float, ...], divergence: Divergence = divergence) -> Tensor:
    """Return the students' divergences from the finished target at ``temperatures`` ``[students]`` on ``tokens [rows, window + 1]``."""
    with torch.no_grad():
        known = models["target"](tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1)
    found = (student(tokens[:, :-1], use_cache=False).logits.float().flatten(0, 1) for student in _students(models))
    return torch.stack([divergence(known, logits, temperatures) for logits in found])


def _students(models: nn.ModuleDict) -> Iterator[nn.Module]:
    return (model for name, model in models.items() if name != "target")
