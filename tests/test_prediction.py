"""Predictions of live latency: a machine that became slower, unequally for every part, is predicted from what a probe saw."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.loop import DecodedText
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.prediction import Probe, predict
from dispatch_rl.replay.measuring import STRETCH
from dispatch_rl.replay.running import predicted_rounds, replay
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import made_up_profile, made_up_world, random_rows

DRAFTING = {"a": 2.0, "b": 0.5, LOOKUP: 3.0, NONE: 1.0}
"""How much slower each drafter is than its profile."""
REST = {"a": 1.5, "b": 1.2, LOOKUP: 0.7, NONE: 1.1}
"""The same for everything else in a round of that drafter."""
BETWEEN_MS, DECISION_MS = 0.25, 7.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ReplayWorld:
    rows = random_rows(Random(1), 40, longest=40)
    arms = [Arm("a", 1), Arm("a", 3), Arm("b", 2), Arm(LOOKUP, 4), Arm(NONE)]
    return made_up_world(tmp_path_factory.mktemp("world") / "mine", rows, arms, made_up_profile(10, overhead_ms=0.5, a=1, b=2, lookup=0.1))


def decoded(world: ReplayWorld, policy: Policy, drafting: Mapping[str, float], rest: Mapping[str, float]) -> list[DecodedText]:
    """Return all texts as a machine decodes them whose parts are slower by these factors."""
    rounds = replay(world, policy).rounds
    names = [arm.name for arm in world.arms]
    found = []
    for i, text in enumerate(world.texts.tolist()):
        mine = [names.index(name) for name in rounds.arm[rounds.text == i]]
        there = predicted_rounds(world, text, mine)
        live = [
            replace(r, draft_ms=r.draft_ms * drafting[s], verify_ms=r.verify_ms * rest[s], overhead_ms=r.overhead_ms * rest[s])
            for r, s in zip(there, (world.arms[action].student for action in mine), strict=True)
        ]
        total = sum(r.latency_ms for r in live) + BETWEEN_MS * len(live) + DECISION_MS
        found.append(DecodedText(world.traces.path_tokens(text) or (), tuple(live), 1.0, total, DECISION_MS, (0.0,) * len(live)))
    return found


def times_ms(texts: Sequence[DecodedText]) -> list[float]:
    return [text.decoding_ms for text in texts]


def test_every_part_is_as_slow_as_the_probe_says(world: ReplayWorld) -> None:
    """Other policies than the probe are predicted to the last digit, what they take to decide included."""
    probe = decoded(world, RandomPolicy(len(world.arms), 0), DRAFTING, REST)
    texts = {f"always {i}": decoded(world, FixedPolicy(i), DRAFTING, REST) for i in range(len(world.arms))}
    prediction = predict(world, world.texts.tolist(), texts, [probe, probe])
    for name, measured in texts.items():
        np.testing.assert_allclose(prediction.latency_ms[name], times_ms(measured), rtol=1e-9)
    assert prediction.drift == pytest.approx(sum(REST.values()) / 4 - 1, abs=0.3)


def test_a_drafter_that_was_hardly_seen_is_as_slow_as_all(world: ReplayWorld) -> None:
    """The probe never drafted with 'b', which is then taken to be slower by as much as the others together."""
    arms = [0, 1, 3, 4]
    alike: dict[str, float] = dict.fromkeys(DRAFTING, 1.3)

    class Some(RandomPolicy):
        def batch(self, observations: np.ndarray) -> np.ndarray:
            return np.array(arms)[self._rng.integers(len(arms), size=len(observations))]

    probe = decoded(world, Some(len(world.arms), 0), alike, alike)
    texts = {"b": decoded(world, FixedPolicy(2), alike, alike)}
    prediction = predict(world, world.texts.tolist(), texts, [probe])
    np.testing.assert_allclose(prediction.latency_ms["b"], times_ms(texts["b"]), rtol=1e-9)
    assert prediction.drift == pytest.approx(0.3)


def test_what_was_not_recorded_is_not_predicted(world: ReplayWorld) -> None:
    """Neither a text without a number nor one whose tokens are others; with nothing known there is no drift."""
    texts = decoded(world, FixedPolicy(0), DRAFTING, REST)
    recorded = [None, *world.texts.tolist()[1:]]
    texts[1] = replace(texts[1], tokens=(*texts[1].tokens[:-1], -1))
    prediction = predict(world, recorded, {"a": texts}, [texts])
    assert np.isnan(prediction.latency_ms["a"]).tolist() == [True, True, *[False] * (len(texts) - 2)]
    nothing = predict(world, [None] * len(texts), {"a": texts}, [texts])
    assert np.isnan(nothing.latency_ms["a"]).all()
    assert nothing.drift is None


def test_the_probe_follows_a_policy_for_a_stretch() -> None:
    """Then another; all come, and all are told of a new text."""
    told = []

    class Told(FixedPolicy):
        def reset(self) -> None:
            told.append(self.action)

    probe = Probe([Told(action) for action in range(5)], 0)
    probe.reset()
    actions = [probe(np.zeros(3, dtype=np.float32)) for _ in range(40 * STRETCH)]
    stretches = [set(actions[i : i + STRETCH]) for i in range(0, len(actions), STRETCH)]
    assert all(len(stretch) == 1 for stretch in stretches)
    assert set(actions) == set(range(5)) == set(told)
