"""Where time is lost against the oracle: every millisecond is accounted for."""

from pathlib import Path
from random import Random

import numpy as np
import pytest

from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.regret import CATCH_UP, TOO_LONG, TOO_SHORT, WRONG_STUDENT, regret
from dispatch_rl.replay.running import replay
from tests.traces import made_up_profile, made_up_world, random_rows


@pytest.mark.parametrize("seed", range(4))
def test_losses_add_up_to_the_excess_over_the_oracle(tmp_path: Path, seed: int) -> None:
    """Text by text, whatever is chosen; and nothing is ever gained on the oracle."""
    arms = [Arm("a", 1), Arm("a", 4), Arm("b", 3), Arm(LOOKUP, 3), Arm(NONE)]
    profile = made_up_profile(10, overhead_ms=0.2, token_ms=0.01, a=1, b=3)
    world = made_up_world(tmp_path / "t.jsonl", random_rows(Random(seed), 6, longest=25), arms, profile)
    played, bound = replay(world, RandomPolicy(len(arms), seed)), cheapest(world)
    found = regret(world, played.rounds, bound)
    assert found.choice_ms.min() > -1e-9
    assert found.catch_up_ms.min() > -1e-9
    lost = np.bincount(played.rounds.text, found.choice_ms + found.catch_up_ms)
    assert lost == pytest.approx(played.latency_ms - bound.latency_ms, abs=1e-9)


def test_what_was_missed_by_hand(tmp_path: Path) -> None:
    """Four tokens behind the first: `a` gets one right and then none, `b` gets all. The target takes 10 ms, `a` 1 and `b` 2 a token."""
    row = {"prompt": [1], "path": [1, 2, 3, 4, 5], "match_a": [True, True, False, False, False], "match_b": [True] * 5}
    arms = [Arm("a", 1), Arm("a", 3), Arm("b", 1), Arm("b", 3), Arm(NONE)]
    metadata = {"students": ["a", "b"], "first_position": 1, "max_draft_length": 4}
    world = made_up_world(tmp_path / "recording", [row], arms, made_up_profile(10, a=1, b=2), metadata)
    bound = cheapest(world)
    # b-3 drafts tokens 1 to 3 and the target's own is the fourth: 3 * 2 + 10.
    assert bound.latency_ms.tolist() == [16.0]
    # Two rounds of a-1 or more would cost at least two verifications.
    expected = {"a-1": WRONG_STUDENT, "a-3": WRONG_STUDENT, "b-1": TOO_SHORT, "b-3": None, "none": TOO_SHORT}
    for action, arm in enumerate(arms):
        played = replay(world, FixedPolicy(action))
        found = regret(world, played.rounds, bound)
        first = expected[arm.name]
        if first is None:
            assert found.choice_ms.sum() == pytest.approx(0)
        else:
            assert found.missed[0] == first, arm.name
            assert found.choice_ms[0] > 0
    # Only the last token is left behind three rounds of the target alone: the oracle would not draft either.
    assert bound.actions[world.traces.offsets[0] + 4] == arms.index(Arm(NONE))


def test_drafting_where_the_target_alone_is_better_is_too_long(tmp_path: Path) -> None:
    """A student that is never right."""
    row = {"prompt": [1], "path": [1, 2, 3], "match_a": [False] * 3}
    metadata = {"students": ["a"], "first_position": 1, "max_draft_length": 4}
    world = made_up_world(tmp_path / "recording", [row], [Arm("a", 2), Arm(NONE)], made_up_profile(10, a=1), metadata)
    found = regret(world, replay(world, FixedPolicy(0)).rounds, cheapest(world))
    assert found.missed[0] == TOO_LONG
    assert found.choice_ms[0] == pytest.approx(2)
    assert CATCH_UP not in found.missed
