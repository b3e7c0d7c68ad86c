"""What students would draft beyond their first wrong token.

There a student leaves the path, and what it drafts can no longer stand. But a student that hesitates drafts on until its choice is
unclear, which takes time, so how clear its choices would be is recorded as well. It depends only on where the student went wrong.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dispatch_rl.decoding.cache import AnyCache
from dispatch_rl.decoding.clearness import entropies_nats, two_best
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.kernels.verify import shape

_TOGETHER = 96
"""Drafts that are continued side by side."""


@dataclass(frozen=True)
class Read:
    """Texts that a student has read, with one row per text, as in :mod:`dispatch_rl.replay.paths`."""

    cache: AnyCache
    """Everything but the last token of each path."""
    visible: Tensor
    """Which of those tokens are real ``[texts, tokens]``."""
    columns: int
    """Emitted tokens of the longest path."""
    noise: Callable[[Tensor, Tensor], Tensor | None]
    """Returns the noise ``[rows, vocab]`` of texts ``[rows]`` at columns ``[rows]``; None when greedy."""


@dataclass(frozen=True)
class Choices:
    """How clear the choices of some drafts are, one behind the other ``[drafts, tokens]``; NaN behind the end of a draft."""

    margin: Tensor
    entropy_nats: Tensor


def scores(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """Return what tokens are the largest of ``[rows, vocab]``, given coupled ``noise``, or None if decoding is greedy."""
    return logits if noise is None else shape(logits, sampling.temperature, sampling.top_k, sampling.top_p) + noise


def continued(student: CachedModel, read: Read, wrong: Tensor, tokens: Tensor, sampling: Sampling, ends: Tensor, longest: int) -> Choices:
    """Let a student draft on from its wrong tokens.

    Args:
        student: Who drafts.
        read: What it has read.
        wrong: Text and column of every wrong token ``[drafts, 2]``.
        tokens: The wrong tokens ``[drafts]``.
        sampling: Greedy or coupled.
        ends: Tokens that end a draft.
        longest: Tokens to draft at most.
    """
    margin, entropy = (torch.full((len(wrong), longest), torch.nan, device=wrong.device) for _ in range(2))
    for some in torch.arange(len(wrong), device=wrong.device).split(_TOGETHER):
        for k, (drafts, logits, scored) in enumerate(_steps(student, read, wrong[some], tokens[some], sampling, ends, longest)):
            margin[some[drafts], k], entropy[some[drafts], k] = two_best(scored)[0], entropies_nats(logits)
    return Choices(margin, entropy)


def _steps(
    student: CachedModel, read: Read, wrong: Tensor, tokens: Tensor, sampling: Sampling, ends: Tensor, longest: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield token by token which drafts go on, and their logits and scores ``[drafts, vocab]``."""
    text, column = wrong.unbind(1)
    prompts = read.cache.length - (read.columns - 1)
    before = torch.arange(read.columns - 1, device=wrong.device) < column[:, None]
    visible = torch.cat([read.visible[text, :prompts], before.long()], dim=1)
    cache = read.cache.chosen(text, longest)
    drafts = torch.arange(len(wrong), device=wrong.device)
    for k in range(longest):
        going = (~torch.isin(tokens, ends)).nonzero()[:, 0]
        if len(going) < len(drafts):
            cache.select(going)
            drafts, tokens, text, column, visible = (x[going] for x in (drafts, tokens, text, column, visible))
        if len(drafts) == 0:
            return
        visible = torch.cat([visible, torch.ones_like(visible[:, :1])], dim=1)
        logits = student.forward_batch(tokens[:, None], visible, cache, rows=1)[:, 0]
        scored = scores(logits, sampling, read.noise(text, column + k + 1))
        yield drafts, logits, scored
        tokens = scored.argmax(-1)
