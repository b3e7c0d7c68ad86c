"""Texts that share a family: in two threads, by turns, and where a student cannot begin one."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import DispatchWarning
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from tests.bundles import ARMS, network
from tests.test_lossless import own_text

PROMPTS = ("Problem: Compute 48 + 29.\n<think>\n", "def add(a, b):\n    return")


def test_two_threads_write_the_texts_of_one(pocket: Family) -> None:
    """They take turns by round on one decoder, however often the interpreter changes between them."""
    decoder = AdaptiveDecoder(pocket, network(tuple(pocket.students), len(ARMS)), ARMS)

    def text(number: int) -> tuple[tuple[int, ...], str | None]:
        found = decoder.generate(PROMPTS[number % 2], 40, temperature=0.8, seed=number)
        return found.tokens, found.failure

    alone = [text(number) for number in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(text, range(8))) == alone
    finally:
        sys.setswitchinterval(interval)


def out_of_memory(capacity: int) -> None:
    """Stand in for a student's ``start``."""
    raise torch.OutOfMemoryError(f"no room for {capacity} tokens")


@pytest.mark.parametrize("taking_back", [False, True], ids=["at the beginning", "taking caches back"])
def test_a_student_that_cannot_begin_costs_no_text(pocket: Family, monkeypatch: pytest.MonkeyPatch, taking_back: bool) -> None:
    """It fails where it is to draft, with one warning; others draft as ever, and so does it in the next text."""
    small, medium = (AdaptiveDecoder(pocket, FixedPolicy(action), ARMS) for action in (0, 2))
    tokens = pocket.encode(PROMPTS[0])
    stream = small.stream(tokens, 40)
    if taking_back:
        next(stream)
        medium.generate(PROMPTS[1], 4)
    with monkeypatch.context() as patch:
        patch.setattr(pocket.students["small"], "start", out_of_memory)
        assert medium.generate(PROMPTS[1], 12).failure is None
        stream = stream if taking_back else small.stream(tokens, 40)
        with pytest.warns(DispatchWarning, match="OutOfMemoryError: no room for") as told:
            list(stream)
    assert len(told) == 1
    assert small.last is not None
    assert small.last.failure is not None
    assert list(small.last.tokens) == own_text(pocket, tokens, small.last.tokens, Sampling())
    again = small.generate(tokens, 40)
    assert (again.tokens, again.failure) == (small.last.tokens, None)
    assert "small-5" in again.metrics["arm_shares"]
