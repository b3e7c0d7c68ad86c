"""Where two texts of the same target part: was it torn between two tokens, or has something else gone wrong?"""

import math
from collections.abc import Sequence

import torch

from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampler import Sampler
from dispatch_rl.decoding.sampling import Sampling

NEAR_TIE = 1e-3
"""Scores this close (nats) may change places in float32 when one token is read in place of several."""


def may_part(family: Family, prompt: Sequence[int], text: Sequence[int], other: Sequence[int], sampling: Sampling) -> bool:
    """Return whether rounding explains that two texts behind ``prompt`` differ.

    In 16 bits it may at any token. In float32 it does where the target, asked once more and by itself, is torn between the two tokens.

    Args:
        family: Its target wrote both.
        prompt: Token ids.
        text: Token ids behind it.
        other: Other token ids behind it.
        sampling: Greedy or coupled.
    """
    return not family.in_float32 or behind(family, prompt, text, other, sampling) < NEAR_TIE


def behind(family: Family, prompt: Sequence[int], text: Sequence[int], other: Sequence[int], sampling: Sampling) -> float:
    """Return how far behind the best the target's score of the worse of the two tokens is where texts part (nats, noise included).

    Infinite where one goes on while the other ends, which no rounding does. Arguments are those of :func:`may_part`.
    """
    place = next((i for i, (mine, theirs) in enumerate(zip(text, other, strict=False)) if mine != theirs), None)
    if place is None:
        return math.inf
    tokens = torch.tensor([[*prompt, *text[:place]]])
    logits = family.target.forward_batch(tokens, torch.ones_like(tokens), None, rows=1)[0]
    scores = Sampler(sampling, family.vocab, family.device).scores(logits, position=tokens.shape[1], draw=0)
    return float(scores.max() - scores[0, [text[place], other[place]]].min())
