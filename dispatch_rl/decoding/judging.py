"""The target judges a draft: one forward pass over the last token, the draft, and second choices beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dispatch_rl.decoding.drafts import DraftToken
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampler import Sampler
from dispatch_rl.kernels.entropy import RowStatistics

ROOM_FOR_HEDGES = 256
"""Second choices are read behind the draft, and only beside so many of its first tokens."""


@dataclass(frozen=True)
class Verdict:
    """What the target made of a draft."""

    drafted: list[int]
    """The draft's token ids."""
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
    hedges = {i: d.second for i, d in enumerate(draft[:ROOM_FOR_HEDGES]) if d.second is not None}
    found = sampler.judge(family.target, last, draft, hedges, position, draw)
    rows = len(draft) + 1
    drafted, alternatives = found.read[1:rows], dict(zip(hedges, found.read[rows:], strict=True))
    accepted, following = found.accepted, found.following
    emitted = _cut(family, [*drafted[:accepted], following])
    seen = sampler.statistics(found.logits[:rows], len(emitted))
    ended = len(emitted) <= accepted or following in family.eos_token_ids
    if ended or alternatives.get(accepted) != following:
        return Verdict(drafted, emitted, accepted, len(hedges), None, seen)
    row = rows + list(hedges).index(accepted)
    own = found.logits[row : row + 1]
    _, behind = sampler.verify(own, family.no_tokens, None, position + accepted + 1, draw)
    both = (torch.cat(values) for values in zip(seen, sampler.statistics(own, 1), strict=True))
    return Verdict(drafted, [*emitted, behind], accepted, len(hedges), row, RowStatistics(*both))


def _cut(family: Family, emitted: list[int]) -> list[int]:
    """Return ``emitted`` up to and including the first end-of-sequence token."""
    ends = [i for i, token in enumerate(emitted) if token in family.eos_token_ids]
    return emitted[: ends[0] + 1] if ends else emitted
