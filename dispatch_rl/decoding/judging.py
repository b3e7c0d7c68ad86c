"""The target judges a draft: one forward pass over the last token, the draft, and second choices beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dispatch_rl.decoding.drafting import DraftToken, Sampler
from dispatch_rl.decoding.families import Family
from dispatch_rl.kernels.entropy import RowStatistics


@dataclass(frozen=True)
class Verdict:
    """What the target made of a draft."""

    emitted: list[int]
    """Tokens that the text grows by, up to and including one that ends it."""
    accepted: int
    """Leading draft tokens that stand."""
    hedges: int
    """Second choices that were judged too."""
    hedge_row: int | None
    """Where the second choice that stands was read in the pass; None if none does."""
    statistics: RowStatistics
    """The target's, at every emitted token."""


def judge(family: Family, sampler: Sampler, last: int, draft: Sequence[DraftToken], position: int, draw: int) -> Verdict:
    """Let the target read ``last`` and the ``draft`` behind it, and judge.

    Args:
        family: Its target has read everything before ``last``.
        sampler: Chooses the target's tokens.
        last: The last token of the text.
        draft: Draft tokens.
        position: Position of the first draft token.
        draw: Number of the round.
    """
    drafted = torch.cat([d.token for d in draft]) if draft else family.no_tokens
    hedges = {i: d.second for i, d in enumerate(draft) if d.second is not None}
    tokens = torch.cat([torch.tensor([last], device=family.device), drafted, *hedges.values()])
    logits = family.target.forward(tokens, beside=[i + 1 for i in hedges])
    q_draft = [d.q_draft for d in draft if d.q_draft is not None]
    chain = logits[: len(drafted) + 1]
    accepted, following = sampler.verify(chain, drafted, torch.cat(q_draft) if q_draft else None, position, draw)
    emitted = _cut(family, [*drafted[:accepted].tolist(), following])
    seen = sampler.statistics(chain, len(emitted))
    ended = len(emitted) <= accepted or following in family.eos_token_ids
    if ended or accepted not in hedges or following != int(hedges[accepted]):
        return Verdict(emitted, accepted, len(hedges), None, seen)
    row = len(drafted) + 1 + list(hedges).index(accepted)
    own = logits[row : row + 1]
    _, behind = sampler.verify(own, family.no_tokens, None, position + accepted + 1, draw)
    both = (torch.cat(values) for values in zip(seen, sampler.statistics(own, 1), strict=True))
    return Verdict([*emitted, behind], accepted, len(hedges), row, RowStatistics(*both))


def _cut(family: Family, emitted: list[int]) -> list[int]:
    """Return ``emitted`` up to and including the first end-of-sequence token."""
    ends = [i for i, token in enumerate(emitted) if token in family.eos_token_ids]
    return emitted[: ends[0] + 1] if ends else emitted
