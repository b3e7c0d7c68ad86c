"""Where two texts part: only a near tie is forgiven in float32."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.parting import NEAR_TIE, behind, may_part
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.kernels.noise import gumbel

PROMPT = (3, 1, 4)


def torn(scores: list[float], sampling: Sampling, in_float32: bool = True) -> Any:
    """Return a family whose target gives these scores, noise included, to four tokens behind ``PROMPT`` and one more token."""

    def forward_batch(tokens: Tensor, visible: Tensor, cache: None, rows: int) -> Tensor:
        assert (tokens.tolist(), visible.tolist(), cache, rows) == ([[*PROMPT, 2]], [[1, 1, 1, 1]], None, 1)
        noise = torch.zeros(1, 4) if sampling.greedy else gumbel(sampling.seed, torch.tensor([4]), 4)
        logits = (torch.tensor([scores]) - noise) * (1.0 if sampling.greedy else sampling.temperature)
        return logits[None]

    return SimpleNamespace(in_float32=in_float32, device=torch.device("cpu"), vocab=4, target=SimpleNamespace(forward_batch=forward_batch))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5, seed=8)], ids=["greedy", "coupled"])
def test_a_near_tie_by_hand(sampling: Sampling) -> None:
    """Both tokens must be all but the best: what lies further behind, or behind a third, is no tie."""
    near, far = NEAR_TIE / 2, 2 * NEAR_TIE
    assert may_part(torn([1, 0, 1 - near, 0], sampling), PROMPT, (2, 0, 3), (2, 2, 3), sampling)
    assert not may_part(torn([1, 0, 1 - far, 0], sampling), PROMPT, (2, 0, 3), (2, 2, 3), sampling)
    assert not may_part(torn([1, 5, 1 - near, 0], sampling), PROMPT, (2, 0, 3), (2, 2, 3), sampling)
    assert behind(torn([1, 5, 3, 0], sampling), PROMPT, (2, 0, 3), (2, 2, 3), sampling) == pytest.approx(4, abs=1e-5)


def test_in_16_bits_any_token_may_part() -> None:
    """Nothing is computed."""
    assert may_part(torn([], Sampling(), in_float32=False), PROMPT, (2, 0, 3), (1, 1, 1), Sampling())


def test_an_end_is_no_tie() -> None:
    """A text that goes on where the other ends has lost or won a token, which no rounding does."""
    assert not may_part(torn([], Sampling()), PROMPT, (2, 0), (2, 0, 3), Sampling())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, seed=5)], ids=["greedy", "coupled"])
def test_a_changed_token_of_a_real_text_is_told(pocket: Family, sampling: Sampling) -> None:
    """The target, asked anew, chooses what it chose."""
    session = DecodingSession(pocket, pocket.encode("def add(a, b):\n    return"), sampling, 12)
    while not session.finished:
        session.step(Arm(NONE))
    text = session.text_tokens
    for place in range(len(text)):
        other = [*text[:place], (text[place] + 1) % pocket.vocab, *text[place + 1 :]]
        assert not may_part(pocket, session.tokens[: session.prompt_length], text, other, sampling)
