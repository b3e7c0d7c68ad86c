"""Policy iteration on replay: what it believes about arms is true, and what it learns from that is better."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dispatch_rl.config import PolicyIterationConfig
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.errors import UserError
from dispatch_rl.iteration import PolicyIteration
from dispatch_rl.policies.base import Observation, Policy
from dispatch_rl.race import Race
from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.running import best_fixed_latency_ms, replay
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import Row, made_up_profile, made_up_world, random_rows

ARMS = [Arm("a", 4), Arm("b", 2), Arm("b", 8), Arm(NONE)]
SMALL = PolicyIterationConfig(iterations=3, states=120, n_epochs=4, batch_size=32, net_arch=[16])


def random_world(path: Path) -> ReplayWorld:
    """Return 24 texts along which two students hit and miss at random."""
    return made_up_world(path, random_rows(Random(0), 24, longest=20), ARMS, made_up_profile(10, 0.5, a=1, b=2.5), {"students": ["a", "b"]})


def telling_world(path: Path) -> ReplayWorld:
    """Return texts in which the student 'a' is right exactly where the target's entropy at the token before is low, in long stretches."""
    rng, rows = Random(1), []
    for _ in range(24):
        easy = [k // 10 % 2 == 0 for k in range(60)]
        row: Row = {"path": [rng.randrange(100) for _ in easy], "prompt": [1, 2], "match_a": easy, "top1_probability": [0.5] * 60}
        row |= {"entropy": [0.1 if e else 3.0 for e in [*easy[1:], False]], "margin": [1.0] * 60}
        rows.append(row)
    return made_up_world(path, rows, [Arm("a", 8), Arm(NONE)], made_up_profile(10, a=1), {"students": ["a"], "first_position": 1})


class FirstThen(Policy):
    """One arm, then what another policy says."""

    def __init__(self, action: int, policy: Policy) -> None:
        self.action: int | None = action
        self.policy = policy

    def __call__(self, observation: Observation) -> int:
        action, self.action = self.action, None
        return self.policy(observation) if action is None else action


def test_consequences_are_those_of_replay(tmp_path: Path) -> None:
    """From the beginning of every text, Q(s, a) is the latency of the text with ``a`` first and the policy from then on."""
    world = random_world(tmp_path / "x")
    learner = PolicyIteration(world, SMALL, seed=0)
    learner.step()
    policy = learner.policy()
    from dispatch_rl.replay.episodes import Episodes

    starts = Episodes(world, len(world.texts))
    costs = learner._costs(starts, policy)
    for i, text in enumerate(world.texts.tolist()):
        for action in range(len(ARMS)):
            episode = Episodes(world, 1)
            episode.restart(np.array([0]), np.array([text]))
            total, chosen, finished = 0.0, FirstThen(action, policy), False
            while not finished:
                step = episode.step(np.array([chosen(episode.observations()[0])]))
                total, finished = total + float(step.latency_ms[0]), bool(step.finished[0])
            assert costs[i, action] == pytest.approx(total)


def test_it_learns_what_the_features_tell(tmp_path: Path) -> None:
    """Where the entropy says whether the student is right, it comes close to the oracle, which no fixed arm does."""
    world = telling_world(tmp_path / "x")
    learner = PolicyIteration(world, replace(SMALL, iterations=6, states=400, n_epochs=20), seed=0)
    for _ in range(6):
        learner.step()
    fixed = best_fixed_latency_ms(world)
    tokens = (world.traces.lengths - world.traces.first_position)[world.texts].sum()
    oracle = float(cheapest(world).latency_ms.sum() / tokens)
    learned = replay(world, learner.policy()).latency_ms_per_token
    assert fixed - learned > 0.8 * (fixed - oracle) > 0


def test_it_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """Twice the same seed gives the same policy, bit for bit; another seed another one."""
    world = random_world(tmp_path / "x")
    found = []
    for seed in (0, 0, 1):
        learner = PolicyIteration(world, SMALL, seed)
        learner.step()
        learner.step()
        found.append({key: value.tobytes() for key, value in learner.policy().tensors().items()})
    assert found[0] == found[1] != found[2]


def long_world(path: Path) -> ReplayWorld:
    """Return texts of 200 tokens in which the student 'a' is right three times in four."""
    rng = Random(2)
    rows: list[Row] = [{"match_a": [rng.random() < 0.75 for _ in range(200)]} for _ in range(8)]
    return made_up_world(path, rows, [Arm("a", 4), Arm("a", 1), Arm(NONE)], made_up_profile(10, a=1))


def test_beyond_a_horizon_tokens_count_as_much_as_on_average(tmp_path: Path) -> None:
    """Left behind 60 tokens, or some more, arms are worth nearly what they are at the end; a horizon beyond that changes nothing."""
    world, advantages = long_world(tmp_path / "x"), {}
    for horizon in (60, 200, 10**6):
        learner = PolicyIteration(world, replace(SMALL, states=400, horizon=horizon), seed=0)
        # Whoever has no preference always chooses the first arm, however far it looks.
        advantages[horizon] = learner._lesson(np.random.default_rng(0)).advantages
    np.testing.assert_array_equal(advantages[200], advantages[10**6])
    # Where a round ends, and the text, is chance; on average over states it is the same.
    assert 0.8 < np.corrcoef(advantages[60].ravel(), advantages[200].ravel())[0, 1] < 1
    assert np.abs((advantages[60] - advantages[200]).mean(axis=0)).max() < 0.05 * advantages[200].std()


def test_exploring_leaves_no_trace_in_what_is_branched(tmp_path: Path) -> None:
    """Following the consequences of an arm does not move the state that it was tried from."""
    learner = PolicyIteration(random_world(tmp_path / "x"), SMALL, seed=0)
    states = learner._explore(learner.policy(), np.random.default_rng(0))
    before = {key: value.copy() for key, value in states.state().items()}
    learner._costs(states, learner.policy())
    assert all(np.array_equal(before[key], value) for key, value in states.state().items())
    assert 60 < states.count < 240


RACE = replace(SMALL, iterations=4, starts=3, heat=2, states=30, n_epochs=1)


def race_of(world: ReplayWorld, config: PolicyIterationConfig = RACE) -> Race[PolicyIteration]:
    """Return a new race on a world."""
    return Race(lambda seed, among: PolicyIteration(world, config, seed, None, among), world, config, seed=7)


def raced(race: Race[PolicyIteration], latencies_ms: list[float]) -> list[tuple[int, int, int]]:
    """Let learners learn while validation says this; return start, iterations of its learner and of all together, after each."""
    found = []
    for latency_ms in latencies_ms:
        race.learner.step()
        found.append((race.start, race.learner.iteration, race.done))
        race.judge(latency_ms)
    return found


@pytest.mark.parametrize(
    ("latencies_ms", "winner"),
    [([3, 2, 1, 3, 2, 2], 2), ([2, 1, 1, 2, 3, 1], 1), ([2, 2, 2, 2, 1, 3], 3)],
    ids=["by its best iteration", "the first of equals", "the last"],
)
def test_the_fastest_start_goes_on(tmp_path: Path, latencies_ms: list[float], winner: int) -> None:
    """After two iterations of each of three; it ends after four of its own, whatever validation says of them."""
    race, seeds, heats = race_of(random_world(tmp_path / "x")), list[int](), list[tuple[int, int, int]]()
    for latency_ms in latencies_ms:
        seeds.append(race.learner.seed)
        heats += raced(race, [latency_ms])
    assert race.learner.seed == seeds[2 * winner - 1]
    assert heats == [(1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 2, 4), (3, 1, 5), (3, 2, 6)]
    assert not race.finished
    assert raced(race, [9, 0]) == [(winner, 3, 7), (winner, 4, 8)]
    assert race.finished
    assert race.done == RACE.all_iterations == 8


def test_every_student_has_a_start_and_so_have_all(tmp_path: Path) -> None:
    """It takes that one's arms and the target alone, whatever it sees; who goes on takes all. No two begin with the same weights."""
    world = random_world(tmp_path / "x")
    race, taken, first = race_of(world), [], []
    observations = np.random.default_rng(0).uniform(0, 9, (500, len(world.features))).astype(np.float32)
    for _ in range(RACE.starts):
        first.append(race.learner.policy().tensors()["layers.0.weight"].tobytes())
        taken.append(race.learner.actions.tolist())
        race.learner.step()
        assert {*race.learner.policy().batch(observations)} <= {*taken[-1]}
        race.judge(1)
        raced(race, [1])
    assert taken == [[0, 3], [1, 2, 3], [0, 1, 2, 3]]
    assert len({*first}) == 3
    assert race.learner.actions.tolist() == [0, 1, 2, 3]
    logits = race.learner.policy().batch_logits(observations)
    assert np.allclose(logits[:, 1], logits[:, [0, 3]].mean(axis=1), atol=1e-5)
    assert np.array_equal(logits[:, 1], logits[:, 2])


def test_one_start_is_plain_policy_iteration(tmp_path: Path) -> None:
    """From the seed itself, with all arms."""
    world = random_world(tmp_path / "x")
    plain, alone = PolicyIteration(world, RACE, seed=7), race_of(world, replace(RACE, starts=1))
    raced(alone, [1, 2, 3, 4])
    for _ in range(4):
        plain.step()
    assert alone.finished
    assert {key: value.tobytes() for key, value in alone.state().items() if key.startswith("0/")} == {
        f"0/{key}": value.tobytes() for key, value in plain.state().items()
    }


@pytest.mark.parametrize("interrupted", range(1, 8))
def test_a_race_goes_on_where_it_was(tmp_path: Path, interrupted: int) -> None:
    """Bit for bit, in a heat, between two, and behind the last."""
    world, latencies_ms = random_world(tmp_path / "x"), [3.0, 2, 1, 3, 2, 2, 5, 5]
    whole, cut, other = race_of(world), race_of(world), race_of(world)
    raced(whole, latencies_ms)
    before = raced(cut, latencies_ms[:interrupted])
    other.restore(cut.state())
    assert [*before, *raced(other, latencies_ms[interrupted:])][-1] == (2, 4, 8)
    assert {key: value.tobytes() for key, value in other.state().items()} == {key: value.tobytes() for key, value in whole.state().items()}


@pytest.mark.parametrize(("iterations", "heats"), [(1, 0), (2, 3), (3, 3)])
def test_heats_are_at_most_half_of_it(tmp_path: Path, iterations: int, heats: int) -> None:
    """With so few iterations that no heat has any, there is one start, with all arms."""
    race = race_of(random_world(tmp_path / "x"), replace(RACE, iterations=iterations, heat=5))
    assert (race.learner.actions.tolist() == [0, 1, 2, 3]) == (not heats)
    raced(race, [1] * (max(heats - 1, 0) + iterations))
    assert race.finished
    assert race.learner.actions.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": 0}, "policy_iteration.states: 0 is not above 0"),
        ({"starts": 0}, "policy_iteration.starts: 0 is not above 0"),
        ({"leave": 1.5}, r"policy_iteration.leave: 1.5 is not in 0 ... 1"),
        ({"ent_coef": -1.0}, "policy_iteration.ent_coef: -1.0 is below 0"),
        ({"net_arch": [0]}, r"policy_iteration.net_arch: \[0\] has a width"),
    ],
)
def test_senseless_settings_are_refused(changes: dict[str, float], message: str) -> None:
    """The key is named."""
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)  # type: ignore[arg-type]
