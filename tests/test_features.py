"""The features: documented, bounded, and worked out by hand."""

import numpy as np
import pytest

from dispatch_rl.decoding.features import FeatureTracker, feature_table
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.envs.live import LiveDecodingEnv


def record(students: tuple[str, ...], accepted: int, entropies: tuple[float, ...]) -> Round:
    """Return a round in which all draft tokens are 7."""
    return Round(
        arm="x",
        students=students,
        drafted=(7,) * len(students),
        num_accepted=accepted,
        emitted=(7,) * len(entropies),
        entropies_nats=entropies,
        draft_ms=1.0,
        verify_ms=1.0,
        overhead_ms=0.0,
    )


def test_moving_averages_by_hand() -> None:
    """Entropy decays by 0.8 per token, acceptance by 0.9 per judged draft token, from 0.5."""
    tracker = FeatureTracker(("a", "b"))
    tracker.start(1.0, 0.9, 3.0)
    tracker.update(record(("a", "a", "a"), 1, (2.0, 0.5)), 0.6, 2.0)
    names = [feature.name for feature in tracker.table]
    seen = dict(zip(names, tracker.observation(2, 0.25, (3, 40)).tolist(), strict=True))
    assert seen["entropy"] == 0.5
    assert seen["entropy_mean"] == pytest.approx(0.8 * (0.8 * 1.0 + 0.2 * 2.0) + 0.2 * 0.5)
    assert seen["acceptance_a"] == pytest.approx(0.9 * (0.9 * 0.5 + 0.1 * 1) + 0.1 * 0)
    assert seen["acceptance_b"] == 0.5
    assert seen["accepted_fraction"] == pytest.approx(1 / 3)
    assert (seen["lookup_match"], seen["position"], seen["lag_a"], seen["lag_b"]) == (2, 0.25, 3, 40)


def test_unjudged_tokens_do_not_count() -> None:
    """What stands behind the first rejected token was never judged: a's only judged token was accepted."""
    tracker = FeatureTracker(("a", "b"))
    tracker.update(record(("a", "b", "a"), 1, (0.1, 0.1)), 0.5, 1.0)
    names = [feature.name for feature in tracker.table]
    seen = dict(zip(names, tracker.observation(0, 0.0, (0, 0)).tolist(), strict=True))
    assert seen["acceptance_a"] == pytest.approx(0.9 * 0.5 + 0.1)
    assert seen["acceptance_b"] == pytest.approx(0.9 * 0.5)


def test_observations_are_clipped_to_the_table() -> None:
    """Nothing that decoding can produce leaves the bounds, infinite margins included."""
    tracker = FeatureTracker(("a",))
    tracker.start(50.0, 1.0, float("inf"))
    observation = tracker.observation(9, 1.0, (10_000,))
    assert np.isfinite(observation).all()
    for value, feature in zip(observation, tracker.table, strict=True):
        assert feature.low <= value <= feature.high, feature.name


def test_the_environments_manual_lists_the_features() -> None:
    """The table in the docstring has the names, units and bounds of the feature table, in its order."""
    manual = LiveDecodingEnv.__doc__ or ""
    lines = [line.split() for line in manual.splitlines() if line.strip()[:1].isdigit()]
    listed = [(words[1], words[2], float(words[3]), float(words[4])) for words in lines]
    assert listed == [(f.name, f.unit, f.low, f.high) for f in feature_table(("small", "medium", "large"))]
