"""Policies decode the same texts; what it means when they do not."""

from dataclasses import replace
from typing import Any

import pytest

from dispatch_rl import contest, report
from dispatch_rl.comparison import TARGET_ALONE
from dispatch_rl.contest import Task, compare_live, with_target
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import DecodedText, decode
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy

TASKS = [Task("code", tuple(range(40, 56)), Sampling(temperature=0.6, seed=seed), 16) for seed in range(3)]
ARMS = with_target([Arm("small", 4)])


def cut(family: Family, policy: FixedPolicy, arms: Any, *about: Any) -> DecodedText:
    """Decode, but let small end a text after nine tokens, in a millisecond each, as if it had parted there."""
    text = decode(family, policy, arms, *about)
    return text if policy.action else replace(text, tokens=text.tokens[:9], decoding_ms=8.0)


def test_in_float32_another_text_is_an_error(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it parts at no near tie: then something is wrong, and no number is given."""
    monkeypatch.setattr(contest, "decode", cut)
    with pytest.raises(UserError, match=r"'always small-4' changed the text of a code prompt .seed 0., and not at a near tie"):
        compare_live(pocket, {"always small-4": FixedPolicy(0)}, ARMS, TASKS, seed=0)


def test_in_16_bits_texts_may_part(pocket: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted, and a policy's time is per token of its own text: eight milliseconds for eight tokens."""
    monkeypatch.setattr(contest, "decode", cut)
    monkeypatch.setattr(Family, "in_float32", False)
    compared = compare_live(pocket, {"always small-4": FixedPolicy(0)}, ARMS, TASKS, seed=0)
    assert compared.tokens.tolist() == [15, 15, 15]
    assert compared.latency_ms_per_token("always small-4").value == pytest.approx(1.0)
    assert compared.results[TARGET_ALONE].times_ms.shape == (3,)
    assert report.verdicts(compared)[-1].startswith("3 of 3 texts parted at near ties, as they may by rounding")
