"""Which of a learner's policies is kept."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.runs import RunFolder
from dispatch_rl.selection import Selection
from dispatch_rl.tracking.base import Tracking
from dispatch_rl.tracking.lines import LinesTracker

LOOK = np.ones(2, dtype=np.float32)


class Told:
    """A validation that knows how fast a policy is by the arm that it chooses."""

    def __init__(self, latencies_ms: list[float], best_fixed: int | None) -> None:
        self.latencies_ms, self.best_fixed = latencies_ms, best_fixed

    def __call__(self, policy: Policy) -> Mapping[str, float]:
        return {"latency_ms_per_token": self.latencies_ms[policy(LOOK)]}


def policies(count: int) -> list[NetworkPolicy]:
    """Return one policy for every arm, which chooses it."""
    size = (count, 2)
    one = NetworkPolicy(LOOK, [np.zeros(size, dtype=np.float32)], [np.zeros(count, dtype=np.float32)])
    return [one.always(action) for action in range(count)]


def selection(path: Path, latencies_ms: list[float], best_fixed: int | None) -> Selection:
    """Return a selection that has been shown the policies of the first three arms, one after the other."""
    run = RunFolder(path)
    path.mkdir()
    found = Selection(run, Tracking(LinesTracker(run)), Told(latencies_ms, best_fixed))
    assert [found.consider(step, policy) for step, policy in enumerate(policies(len(latencies_ms))[:3])] == latencies_ms[:3]
    return found


def kept(found: Selection) -> tuple[int, float]:
    """Return what the best policy chooses, and what is said of it."""
    return NetworkPolicy.load(found.run.best_policy)(LOOK), found.best["validation/latency_ms_per_token"]


@pytest.mark.parametrize(("latencies_ms", "best"), [([3, 1, 2], 1), ([1, 2, 3], 0), ([3, 2, 1], 2), ([2, 1, 1], 1)])
def test_the_fastest_is_kept_the_first_of_equals(tmp_path: Path, latencies_ms: list[float], best: int) -> None:
    """Whenever it came; every policy has a checkpoint of its own."""
    found = selection(tmp_path / "run", latencies_ms, None)
    assert kept(found) == (best, latencies_ms[best])
    assert [NetworkPolicy.load(found.run.checkpoint(step))(LOOK) for step in range(3)] == [0, 1, 2]
    assert found.fall_back() is None
    assert kept(found) == (best, latencies_ms[best])


@pytest.mark.parametrize(("fixed_ms", "taken"), [(0.5, True), (1.0, False), (1.5, False)])
def test_a_fixed_arm_is_kept_only_if_it_is_faster(tmp_path: Path, fixed_ms: float, taken: bool) -> None:
    """Faster than the best learned policy, which takes 1 ms."""
    found = selection(tmp_path / "run", [3, 1, 2, fixed_ms], 3)
    assert found.fall_back() == (3 if taken else None)
    assert kept(found) == ((3, fixed_ms) if taken else (1, 1))
    said = json.loads(found.run.best_validation.read_text())
    assert said == {"always": 3 if taken else None, "validation/latency_ms_per_token": fixed_ms if taken else 1}
