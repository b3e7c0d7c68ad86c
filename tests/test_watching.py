"""How far students draft that stop where their choice is unclear: worked examples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.errors import UserError
from tests.traces import made_up_profile, made_up_world

ROW: dict[str, Any] = {
    "path": [1, 2, 3, 4, 5, 6],
    "match_a": [True, True, False, True, False, True],
    "margin_a": [5.0, 3.0, 2.0, 0.5, 4.0, 6.0],
    "entropy_a": [0.1, 0.2, 0.3, 2.0, 0.1, 0.1],
    # Behind the wrong token at 2: two clear choices, then an unclear one. Behind that at 4: the wrong token ends the text.
    "beyond_margin_a": [[], [], [3.0, 1.5, 0.2, 9.0], [], [], []],
    "beyond_entropy_a": [[], [], [0.1, 0.1, 0.1, 0.1], [], [], []],
}
ARMS = [Arm("a", 4), Arm("a", 4, min_margin=1.0), Arm("a", 4, min_margin=2.5), Arm("a", 4, max_entropy=1.0), Arm("a", 4, 1.0, 1.0)]
CONFIDENT = [Arm("a", 4, min_confidence=0.8), Arm("a", 4, min_margin=2.5, min_confidence=0.95), Arm("a", 2, min_confidence=0.8)]


def outcomes(tmp_path: Path, action: int) -> list[tuple[int, int, int]]:
    """Return drafted, accepted and forward passes of an arm at every position of the made-up text."""
    arms = [*ARMS, *CONFIDENT]
    world = made_up_world(tmp_path / "x", [ROW], arms, made_up_profile(10, a=1), {"students": ["a"], "max_draft_length": 4})
    found = [world.outcomes(*(world.texts[:1] * 0 + n for n in (0, position, action))) for position in range(6)]
    return [(int(r.drafted[0]), int(r.accepted[0]), int(r.forwards[0])) for r in found]


def test_a_plain_arm_drafts_its_length(tmp_path: Path) -> None:
    """Right tokens until the first wrong one are accepted; nothing stops a draft."""
    assert outcomes(tmp_path, 0) == [(4, 2, 4), (4, 1, 4), (4, 0, 4), (4, 1, 4), (4, 0, 4), (4, 1, 4)]


def test_a_margin_stops_a_draft_on_and_off_the_path(tmp_path: Path) -> None:
    """At 1 nat: from 0, two right tokens, the wrong one, and one of two further ones (length 4); from 2, the wrong one and both.

    From 3 the first choice is unclear: nothing is drafted, and one forward pass was made. From 4, the wrong token ends the text, so no
    pass follows; from 5, the path's own end does.
    """
    assert outcomes(tmp_path, 1) == [(4, 2, 4), (4, 1, 4), (3, 0, 4), (0, 0, 1), (1, 0, 1), (1, 1, 1)]


def test_a_student_may_hesitate_at_its_own_error(tmp_path: Path) -> None:
    """At 2.5 nats the wrong token at 2, of 2 nats, is never drafted."""
    assert outcomes(tmp_path, 2) == [(2, 2, 3), (1, 1, 2), (0, 0, 1), (0, 0, 1), (1, 0, 1), (1, 1, 1)]


def test_entropies_stop_a_draft(tmp_path: Path) -> None:
    """At 1 nat of entropy all four choices behind the wrong token at 2 are clear; both limits stop where either does."""
    assert outcomes(tmp_path, 3) == [(4, 2, 4), (4, 1, 4), (4, 0, 4), (0, 0, 1), (1, 0, 1), (1, 1, 1)]
    assert outcomes(tmp_path, 4) == outcomes(tmp_path, 1)


def test_a_student_stops_when_its_confidence_is_spent(tmp_path: Path) -> None:
    """Chances of 0.99, 0.94, 0.83, 0.41, 0.97 and 0.99 on the path, behind the wrong token at 2 of 0.94, 0.73 and 0.35; at least 0.8.

    The token that spends it is drafted, so that no pass is made in vain.
    """
    assert outcomes(tmp_path, len(ARMS)) == [(3, 2, 3), (2, 1, 2), (2, 0, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1)]
    assert outcomes(tmp_path, len(ARMS) + 2) == [(2, 2, 2), (2, 1, 2), (2, 0, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1)]


def test_a_student_without_confidence_looks_no_further(tmp_path: Path) -> None:
    """At 0.95 the second token from 0 spends it, so the unclear third is never looked at."""
    assert outcomes(tmp_path, len(ARMS) + 1) == [(2, 2, 2), (1, 1, 1), (0, 0, 1), (0, 0, 1), (1, 0, 1), (1, 1, 1)]


def test_a_chance_is_the_same_alone_and_in_an_array() -> None:
    """To the last bit, from a third to one."""
    margins, arm = (
        np.random.default_rng(0).exponential(3.0, 1000).astype(np.float32).astype(np.float64),
        Arm("a", 4, min_confidence=0.5, margin_scale=1.7),
    )
    assert [arm.chance(margin) for margin in margins.tolist()] == arm.chance(margins).tolist()
    assert [arm.chance(0.0), arm.chance(float("inf"))] == pytest.approx([1 / 3, 1.0])
    assert np.all(np.diff(arm.chance(np.sort(margins))) >= 0)


def test_time_is_counted_for_what_was_not_drafted(tmp_path: Path) -> None:
    """A student that hesitates at once costs a pass of the student, a look at its choice, and the target alone."""
    profile = made_up_profile(10, overhead_ms=0.5, a=1)
    object.__setattr__(profile, "watch_ms", 0.25)
    world = made_up_world(tmp_path / "x", [ROW], ARMS, profile, {"students": ["a"], "max_draft_length": 4})
    rounds = world.outcomes(*(world.texts[:1] * 0 + n for n in (0, 3, 1)))
    one = world.texts[:1] * 0
    assert world.latency_ms(one, rounds, one + 3, one + 3, world.watching.watches[[1]]) == pytest.approx([10 + 0.5 + 1 + 0.25])


def test_what_was_not_recorded_cannot_be_replayed(tmp_path: Path) -> None:
    """The arm and the columns that it needs are named."""
    row = {key: value for key, value in ROW.items() if not key.startswith("beyond_margin")}
    with pytest.raises(UserError, match=r"arms: 'a-4-m1' needs the columns beyond_margin_a, which .* does not hold"):
        made_up_world(tmp_path / "x", [row], ARMS, made_up_profile(10, a=1), {"students": ["a"], "max_draft_length": 4})


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"student": "a", "length": 2, "min_margin": -1.0}, "min_margin of 'a' is -1.0"),
        ({"student": "lookup", "length": 2, "max_entropy": 1.0}, "'lookup' has no scores of its own"),
        ({"student": "lookup", "length": 2, "min_confidence": 0.5}, "'lookup' has no scores of its own, so it cannot have min_confidence"),
        ({"student": "a", "length": 2, "min_confidence": 1.0}, "min_confidence of 'a' is 1.0; it must be between 0 and 1"),
        ({"student": "a", "length": 2, "min_confidence": 0.5, "margin_scale": 0.0}, "margin_scale of 'a' is 0.0"),
        ({"student": "a", "length": 2, "margin_scale": 3.0}, "margin_scale of 'a' is for min_confidence"),
    ],
)
def test_senseless_limits_are_refused(arm: dict[str, Any], message: str) -> None:
    """The key is named."""
    with pytest.raises(UserError, match=message):
        Arm(**arm)


def test_names_tell_arms_apart() -> None:
    """Limits are part of the name."""
    assert [arm.name for arm in ARMS] == ["a-4", "a-4-m1", "a-4-m2.5", "a-4-e1", "a-4-m1-e1"]
    assert [arm.name for arm in CONFIDENT] == ["a-4-c0.8x2", "a-4-m2.5-c0.95x2", "a-2-c0.8x2"]
