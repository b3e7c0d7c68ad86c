"""What models are taught by, against its formulas in float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dispatch_rl.pocket.losses import joint_losses, last_losses
from dispatch_rl.pocket.training import build_model
from tests.test_pocket_training import CORPUS, TARGET, TOKENIZER, WIDE, recipe


def two_models(equal: bool = False) -> nn.ModuleDict:
    """Return a target and a student, with equal weights or not."""
    settings = recipe(Path("unused"))
    torch.manual_seed(0)
    models = {name: build_model(TARGET if equal else size, settings, TOKENIZER) for name, size in (("target", TARGET), ("s", WIDE))}
    if equal:
        models["s"].load_state_dict(models["target"].state_dict())
    return nn.ModuleDict(models)


def logits64(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return float64 logits ``[rows * window, vocab]``."""
    with torch.no_grad():
        logits: Tensor = model(tokens[:, :-1]).logits.double()
    return logits.flatten(0, 1)


def divergence64(p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(p || q), the mean over tokens, in float64."""
    log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in (p_logits, q_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def test_joint_losses_are_their_formulas() -> None:
    """Cross-entropy for the target; for a student 0.3 KL(p_target || q_student) + 0.7 cross-entropy on every second row."""
    models, tokens = two_models(), torch.from_numpy(CORPUS.batch(0, 3, 0.67))
    rows = tokens[[0, 2]]
    cross_entropy, alone = (
        -logits64(models[name], x).log_softmax(-1)[range(x[:, 1:].numel()), x[:, 1:].flatten()].mean()
        for name, x in (("target", tokens), ("s", rows))
    )
    student = 0.3 * divergence64(logits64(models["target"], rows), logits64(models["s"], rows)) + 0.7 * alone
    expected = torch.stack([cross_entropy, student]).float()
    torch.testing.assert_close(joint_losses(models, tokens, 0.3, 2).detach(), expected, rtol=1e-5, atol=1e-6)


def test_last_losses_are_their_formula() -> None:
    """The mean of the divergences at temperatures 1 and 0.5 on all rows, for students only."""
    models, tokens = two_models(), torch.from_numpy(CORPUS.batch(0, 3, 0.67))
    p, q = logits64(models["target"], tokens), logits64(models["s"], tokens)
    expected = (divergence64(p, q) + divergence64(p, q, 0.5)) / 2
    torch.testing.assert_close(last_losses(models, tokens, (1.0, 0.5)).detach(), expected[None].float(), rtol=1e-5, atol=1e-6)


def students_loss(models: nn.ModuleDict, tokens: Tensor, last: bool) -> Tensor:
    """Return the loss of the student of :func:`two_models` where only agreement counts."""
    return last_losses(models, tokens, (1.0, 0.6))[0] if last else joint_losses(models, tokens, 1.0, 2)[1]


@pytest.mark.parametrize("last", [False, True])
def test_a_student_that_equals_its_target_has_nothing_to_learn(last: bool) -> None:
    """Where only agreement counts its loss is zero, and so is its gradient; a student that differs has both."""
    tokens = torch.from_numpy(CORPUS.batch(1, 3, 0.67))
    for equal in (True, False):
        models = two_models(equal)
        loss = students_loss(models, tokens, last)
        loss.backward()
        slope = max(float(p.grad.abs().max()) for p in models["s"].parameters())  # type: ignore[union-attr]
        assert (abs(loss.item()) < 1e-6, slope < 1e-6) == (equal, equal)


@pytest.mark.parametrize("last", [False, True])
def test_students_do_not_pull_at_the_target(last: bool) -> None:
    """No gradient reaches the target through a student's loss."""
    models = two_models()
    students_loss(models, torch.from_numpy(CORPUS.batch(1, 3, 0.67)), last).backward()
    assert not any(p.grad is not None and p.grad.any() for p in models["target"].parameters())
    assert all(p.grad is not None for p in models["s"].parameters())
