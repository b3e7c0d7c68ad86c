"""Bandits: what they pay, whom they believe, and that they find the best arm."""

from collections.abc import Callable
from math import log, sqrt
from random import Random

import numpy as np
import pytest

from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.policies.bandits import LinUCBPolicy, ThompsonPolicy, UCB1Policy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.tuning import best_fixed
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import Row, made_up_profile, made_up_world

NOTHING = np.zeros(2, dtype=np.float32)

Bandit = UCB1Policy | ThompsonPolicy | LinUCBPolicy
Make = Callable[[int], Bandit]

MAKERS: dict[str, Make] = {
    "UCB1": UCB1Policy,
    "Thompson": lambda actions: ThompsonPolicy(actions, seed=0),
    "LinUCB": lambda actions: LinUCBPolicy(actions, [1.0, 1.0]),
}
every_bandit = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def bandits_for(world: ReplayWorld) -> dict[str, Bandit]:
    """Return a new bandit of each sort for a world."""
    actions = len(world.arms)
    scale = [feature.scale for feature in world.features]
    return {"UCB1": UCB1Policy(actions), "Thompson": ThompsonPolicy(actions, seed=0), "LinUCB": LinUCBPolicy(actions, scale)}


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> ReplayWorld:
    """A world in which the middle student is best everywhere: right nine times in ten, and not dear."""
    rng, students = Random(0), {"cheap": 0.3, "fair": 0.9, "dear": 0.95}
    rows: list[Row] = []
    for _ in range(60):
        matches = {f"match_{name}": [rng.random() < share for _ in range(60)] for name, share in students.items()}
        rows.append({"prompt": [1], "entropy": [rng.random() for _ in range(60)], **matches})
    arms = [*(Arm(name, 4) for name in students), Arm(NONE)]
    return made_up_world(tmp_path_factory.mktemp("steady") / "t.parquet", rows, arms, made_up_profile(10, cheap=0.5, fair=1, dear=6))


@pytest.fixture(scope="module")
def contextual(tmp_path_factory: pytest.TempPathFactory) -> ReplayWorld:
    """A world in which the entropy tells which of two students is right about the next token, and the other is wrong."""
    rng = Random(1)
    rows: list[Row] = []
    for _ in range(60):
        entropy = [rng.choice([0.0, 2.0]) for _ in range(60)]
        low = [before < 1 for before in [0.0, *entropy[:-1]]]
        rows.append({"prompt": [1], "entropy": entropy, "match_low": low, "match_high": [not here for here in low]})
    arms = [Arm("low", 1), Arm("high", 1)]
    return made_up_world(tmp_path_factory.mktemp("contextual") / "t.parquet", rows, arms, made_up_profile(10, low=1, high=1))


@pytest.mark.parametrize("name", MAKERS)
def test_bandits_find_the_best_arm(steady: ReplayWorld, name: str) -> None:
    """In the second pass nearly every round is the best arm's, and its latency is nearly reached."""
    bandit = bandits_for(steady)[name]
    replay(steady, bandit)
    second = replay(steady, bandit)
    best = best_fixed(steady)
    assert steady.arms[best].student == "fair"
    assert (second.rounds.arm == steady.arms[best].name).mean() > 0.9
    assert second.latency_ms_per_token < 1.05 * replay(steady, FixedPolicy(best)).latency_ms_per_token


@pytest.mark.parametrize("name", MAKERS)
def test_learning_costs_little(steady: ReplayWorld, name: str) -> None:
    """From the first round on, what is lost against the best arm is less than a fifth of what random arms lose."""
    best = replay(steady, FixedPolicy(best_fixed(steady))).latency_ms_per_token
    random = replay(steady, RandomPolicy(len(steady.arms), seed=0)).latency_ms_per_token
    bandit = replay(steady, bandits_for(steady)[name]).latency_ms_per_token
    assert bandit - best < 0.2 * (random - best)


def test_linucb_finds_what_depends_on_the_context(contextual: ReplayWorld) -> None:
    """Two tokens in 11 ms for who looks at the entropy, 1.5 on average for who does not."""
    found = bandits_for(contextual)
    for bandit in found.values():
        replay(contextual, bandit)
    latency = {name: replay(contextual, bandit).latency_ms_per_token for name, bandit in found.items()}
    assert latency["LinUCB"] < 1.03 * 11 / 2
    assert min(latency["UCB1"], latency["Thompson"]) > 0.97 * 11 / 1.5


@every_bandit
def test_the_ratio_of_sums_decides(make: Make) -> None:
    """The first arm is best at 4 ms per token; the second has more tokens per ms on average, the third more tokens per round."""
    outcomes = [[(1, 4.0), (1, 4.0)], [(1, 1.0), (1, 9.0)], [(5, 30.0), (5, 30.0)]]
    bandit, rng = make(3), Random(0)
    for _ in range(4_000):
        action = bandit(NOTHING)
        bandit.update(action, *rng.choice(outcomes[action]))
    assert bandit.rounds.argmax() == 0
    assert bandit.rounds[0] > 0.8 * bandit.rounds.sum()


def taught(bandit: Bandit) -> Bandit:
    """Return the bandit after three rounds: 1 and 3 tokens of arm 0, in 1 ms each, and 2 tokens of arm 1 in 2 ms."""
    bandit(NOTHING)
    for round_ in ((0, 1, 1.0), (0, 3, 1.0), (1, 2, 2.0)):
        bandit.update(*round_)
    return bandit


def test_ucb1_by_hand() -> None:
    """6 tokens in 4 ms, so rounds pay -0.5 and 1.5, and -1; their variance is (2.5 / 2 + 1) / 2 = 9/8.

    V is (2 + 9/8) / 3 for the first arm and (0 + 9/8) / 2 for the second.
    """
    bandit = taught(UCB1Policy(2, prior_rounds=1))
    assert isinstance(bandit, UCB1Policy)
    assert bandit.tokens_per_ms == 1.5
    expected = [0.5 + sqrt(2 * (25 / 24) * log(3) / 2), -1 + sqrt(2 * (9 / 16) * log(3) / 1)]
    np.testing.assert_allclose(bandit.bounds(), expected, rtol=1e-12)


def test_thompson_by_hand() -> None:
    """The same pays: n = 2, m = 0.5, S = 2 for the first arm, n = 1, m = -1, S = 0 for the second, nothing for the third."""
    bandit = taught(ThompsonPolicy(3, seed=0))
    assert isinstance(bandit, ThompsonPolicy)
    mean, k, a, b = bandit.posterior()
    np.testing.assert_allclose(mean, [1 / 3, -1 / 2, 0], rtol=1e-12)
    np.testing.assert_allclose(k, [3, 2, 1])
    np.testing.assert_allclose(a, [2, 1.5, 1])
    np.testing.assert_allclose(b, [9 / 8 + 1 + 1 / 12, 9 / 8 + 1 / 4, 9 / 8], rtol=1e-12)


def test_linucb_solves_its_equations() -> None:
    """After many rounds the bounds are those of ridge regression on the pays of now, solved anew."""
    rng = np.random.default_rng(0)
    bandit = LinUCBPolicy(2, [1.0, 4.0, 1.0], exploration=0.7, ridge=2.0)
    seen: list[tuple[int, np.ndarray[tuple[int], np.dtype[np.float64]], int, float]] = []
    for _ in range(300):
        observation = rng.uniform(0, [2, 8, 5], size=3).astype(np.float32)
        bandit(observation)
        x = np.array([observation[0], observation[1] / 4, min(observation[2], 2), 1], dtype=np.float64)
        seen.append((int(rng.integers(2)), x, int(rng.integers(1, 6)), float(rng.uniform(1, 9))))
        bandit.update(seen[-1][0], *seen[-1][2:])
    lam = sum(latency_ms for *_, latency_ms in seen) / sum(emitted for _, _, emitted, _ in seen)
    pays = [np.array([emitted - latency_ms / lam for action, _, emitted, latency_ms in seen if action == arm]) for arm in (0, 1)]
    s = np.sqrt(np.mean([np.mean(of_arm**2) for of_arm in pays]))
    for arm in (0, 1):
        xs = np.array([x for action, x, *_ in seen if action == arm])
        inverse = np.linalg.inv(2 * np.eye(4) + xs.T @ xs)
        x = np.array([0.3, 1.1, 0.9, 1.0])
        expected = x @ inverse @ xs.T @ pays[arm] + 0.7 * s * np.sqrt(x @ inverse @ x)
        np.testing.assert_allclose(bandit.bounds(x)[arm], expected, rtol=1e-9)


@every_bandit
def test_nobody_starves_beside_a_steady_arm(make: Make) -> None:
    """The second arm is twice as fast but has three bad rounds first; the first takes the same in every round, so what it pays is zero."""
    bandit, rng = make(2), Random(0)
    for i in range(6_000):
        action = 1 if i < 3 else bandit(NOTHING)
        bandit.update(action, *((1, 10.0) if action == 0 else (1, 12.0) if bandit.rounds[1] < 3 else (rng.choice([1, 3]), 10.0)))
    assert bandit.rounds[1] > 0.8 * bandit.rounds.sum()


@every_bandit
def test_only_the_chosen_arm_is_learned_from(make: Make) -> None:
    """A round of one arm leaves what is known about the others as it was."""
    bandit = taught(make(3))
    before = {name: value.copy() for name, value in vars(bandit).items() if isinstance(value, np.ndarray)}
    bandit.update(1, 4, 2.5)
    assert bandit.rounds.tolist() == [2, 2, 0]
    arms = {"_sums": 1, "_inverse": 0, "_moments": 0, "_theta": 0}
    known = [name for name in before if name in arms]
    for name in known:
        changed = np.moveaxis(getattr(bandit, name) != before[name], arms[name], 0).reshape(3, -1).any(axis=1)
        assert changed.tolist() == [False, True, False], name
    assert len(known) == (4 if isinstance(bandit, LinUCBPolicy) else 1)


@every_bandit
def test_knowledge_survives_a_new_text(make: Make) -> None:
    """A reset changes no array, so that what the first text taught is used in the next."""
    bandit = taught(make(3))
    before = {name: value.copy() for name, value in vars(bandit).items() if isinstance(value, np.ndarray)}
    bandit.reset()
    assert bandit.learns
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(bandit, name), value)
    assert bandit.rounds.sum() == 3


def choices(bandit: Policy, token_unit: int, ms_unit: float) -> list[int]:
    """Return what a bandit chooses among three noisy arms when tokens and times come in these units."""
    rng, chosen = Random(5), []
    for _ in range(300):
        action = bandit(NOTHING)
        chosen.append(action)
        bandit.update(action, token_unit * rng.randint(1, 3 + action), ms_unit * rng.randint(8, 10 + 4 * action))
    return chosen


@every_bandit
def test_units_do_not_matter(make: Make) -> None:
    """How much is explored follows the spread of the pays: other units, same choices. Powers of two, so that rounding is the same."""
    usual = choices(make(3), 1, 1.0)
    assert len(set(usual)) == 3
    assert choices(make(3), 8, 1.0) == usual
    assert choices(make(3), 1, 1024.0) == usual


def test_ties_go_to_the_first_arm() -> None:
    """Without any difference UCB1 tries the arms in order and LinUCB the first one."""
    bandit = UCB1Policy(4)
    tried = []
    for _ in range(5):
        tried.append(bandit(NOTHING))
        bandit.update(tried[-1], 2, 3.0)
    assert tried == [0, 1, 2, 3, 0]
    assert LinUCBPolicy(4, [1.0, 1.0])(NOTHING) == 0
