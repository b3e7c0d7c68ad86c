"""Verification: how much of a draft stands, and which token follows it.

Notation: ``p_target`` is the target's distribution and ``q_draft`` the student's (Leviathan et al. 2023, arXiv 2211.17192), both after
temperature, top-k and top-p. Row ``i`` of the target's logits is its prediction for draft token ``i``; the last row is for the token
after a draft that stands whole.
"""

import torch
from torch import Tensor


def shape(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return ``logits [rows, vocab]`` in float32 after temperature, top-k and top-p; excluded tokens become ``-inf``.

    The order and the treatment of ties are those of transformers' logits warpers: every token as likely as the k-th stays, and
    top-p keeps the smallest set whose probability reaches ``top_p``.
    """
    scores = logits.float() / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        kth = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if top_p is not None and top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        excluded = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        excluded[:, -1] = False
        scores = scores.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)
    return scores


def leading(stands: Tensor) -> Tensor:
    """Return the number of leading true values of ``stands [draft]``."""
    return stands.long().cumprod(0).sum()


def verify_exact(scores: Tensor, drafted: Tensor) -> tuple[int, int]:
    """Accept draft tokens while each equals the target's own choice.

    With greedy decoding the scores are logits; with Gumbel coupling they are shaped logits plus noise, and the emitted text is the
    target's own sample whatever was drafted.

    Args:
        scores: What the target maximises ``[draft + 1, vocab]``.
        drafted: Draft tokens ``[draft]``.

    Returns:
        The number of accepted tokens and the token that follows them.
    """
    chosen = scores.argmax(-1)
    accepted = int(leading(chosen[:-1] == drafted))
    return accepted, int(chosen[accepted])


def verify_rejection(p_target: Tensor, q_draft: Tensor, drafted: Tensor, uniforms: Tensor, noise: Tensor) -> tuple[int, int]:
    """Accept draft token ``x`` with probability ``min(1, p_target(x) / q_draft(x))``, else draw from the residual.

    The residual is ``max(p_target - q_draft, 0)``, normalised; emitted tokens are distributed as the target's own.

    Args:
        p_target: Target probabilities ``[draft + 1, vocab]``.
        q_draft: Student probabilities ``[draft, vocab]``.
        drafted: Draft tokens, drawn from ``q_draft`` ``[draft]``.
        uniforms: One number in (0, 1) for each draft token ``[draft]``.
        noise: Gumbel noise for the token after the accepted ones ``[draft + 1, vocab]``.

    Returns:
        The number of accepted tokens and the token that follows them.
    """
    rows = torch.arange(len(drafted), device=drafted.device)
    accepted = int(leading(uniforms * q_draft[rows, drafted] < p_target[rows, drafted]))
    rest = p_target[accepted]
    if accepted < len(drafted):
        residual = (rest - q_draft[accepted]).clamp(min=0)
        # With p_target == q_draft up to rounding nothing is left over; any token of the target is then right.
        rest = residual if residual.sum() > 0 else rest
    return accepted, int((rest.log() + noise[accepted]).argmax())
