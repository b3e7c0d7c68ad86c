"""Where two texts of the same target part: was it torn between two tokens, or has something else gone wrong?"""

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
    if not family.in_float32:
        return True
    place = next((i for i, (mine, theirs) in enumerate(zip(text, other, strict=False)) if mine != theirs), None)
    if place is None:
        return False  # one goes on where the other ends
    tokens = torch.tensor([[*prompt, *text[:place]]])
    logits = family.target.forward_batch(tokens, torch.ones_like(tokens), None, rows=1)[0]
    scores = Sampler(sampling, family.vocab, family.device).scores(logits, position=tokens.shape[1], draw=0)
    torn = scores[0, [text[place], other[place]]]
    return bool(torn.min() > scores.max() - NEAR_TIE)
