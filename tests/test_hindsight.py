"""What drafters turn out to have been right about: by hand, whoever reads along pays, and only policies that look do."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dispatch_rl.config import ReplayConfig, RewardConfig
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.features import FeatureTracker, feature_table
from dispatch_rl.envs.replay import ReplayDecodingEnv
from dispatch_rl.envs.replay_vector import ReplayVectorEnv
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Observation, Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.episodes import Episodes
from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.traces import load_traces
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import Row, made_up_profile, random_rows, write_traces

FREE, DEAR, NONE = 0, 1, 2
"""Actions."""
ROW: Row = {"match_free": [True, False, True, True, False, True], "match_dear": [False, True, True, False, True, True]}
READ_ALONG_MS, TARGET_MS, DEAR_MS = 0.1, 10.0, 2.0


class Looking(Policy):
    """Does what it was told, and looks at the features before."""

    def __init__(self, actions: Sequence[int]) -> None:
        self.actions = iter(actions)

    def __call__(self, observation: Observation) -> int:
        return next(self.actions)


def world_of(folder: Path, rows: Sequence[Row], read_along: float = 0.01) -> ReplayWorld:
    """Return texts with a drafter that takes a hundredth of the target's time and one that takes a fifth, both at length 2."""
    traces = load_traces(write_traces(folder / "traces.jsonl", rows))
    profile = made_up_profile(TARGET_MS, free=READ_ALONG_MS, dear=DEAR_MS)
    return ReplayWorld(traces, profile, ArmTable([Arm("free", 2), Arm("dear", 2), Arm("none")]), read_along)


def share(decay: float, matches: Sequence[bool]) -> float:
    """Return the moving share of matches by the formula of the table."""
    value = 0.5
    for match in matches:
        value = decay * value + (1 - decay) * match
    return value


def seen(world: ReplayWorld, episodes: Episodes, episode: int = 0) -> dict[str, float]:
    """Return the features of one episode by name."""
    names = [feature.name for feature in world.features]
    return dict(zip(names, episodes.observations()[episode].tolist(), strict=True))


@pytest.mark.parametrize("along", [True, False])
def test_shares_by_hand(tmp_path: Path, along: bool) -> None:
    """A student is known up to where it has read; one that reads along up to the last token."""
    world = world_of(tmp_path, [ROW], 0.01 if along else 0.0)
    episodes = Episodes(world, 1)
    free, dear = ROW["match_free"], ROW["match_dear"]
    # (action, tokens emitted afterwards, for how many of them it is known of `dear`, and of `free` if it only drafts)
    rounds = [(NONE, 1, 0, 0), (DEAR, 4, 3, 0), (NONE, 5, 3, 0)]
    assert seen(world, episodes)["right_0.8_free"] == 0.5
    for action, emitted, of_dear, of_free in rounds:
        episodes.step(np.array([action]))
        assert episodes.emitted.tolist() == [emitted]
        features = seen(world, episodes)
        for decay in (0.8, 0.95):
            assert features[f"right_{decay}_dear"] == pytest.approx(share(decay, dear[:of_dear])), emitted
            assert features[f"right_{decay}_free"] == pytest.approx(share(decay, free[: emitted if along else of_free])), emitted


def test_a_draft_that_was_rejected_is_known_up_to_there(tmp_path: Path) -> None:
    """`dear` is wrong at once: that is known, and what it drafted behind it was never judged."""
    world = world_of(tmp_path, [{"prompt": [1, 2], **ROW}])
    episodes = Episodes(world, 1)
    episodes.step(np.array([DEAR]))
    assert episodes.emitted.tolist() == [1]
    assert seen(world, episodes)["right_0.8_dear"] == pytest.approx(0.4)


def test_whoever_looks_pays_for_who_reads_along(tmp_path: Path) -> None:
    """One pass in every round in which another drafts; in its own rounds that pass drafts the first token."""
    world, blind = world_of(tmp_path, [ROW]), world_of(tmp_path / "blind", [ROW], read_along=0.0)
    actions = [NONE, DEAR, FREE, NONE]
    looking = replay(world, Looking(actions))
    assert looking.rounds.emitted.tolist() == [1, 3, 1, 1]
    paid = looking.rounds.latency_ms - replay(blind, Looking(actions)).rounds.latency_ms
    np.testing.assert_allclose(paid, [READ_ALONG_MS, READ_ALONG_MS, 0, READ_ALONG_MS], atol=1e-12)
    np.testing.assert_allclose(looking.rounds.latency_ms[2], TARGET_MS + 2 * READ_ALONG_MS)


def test_policies_that_do_not_look_and_the_bound_pay_nothing(tmp_path: Path) -> None:
    """Fixed arms and the oracle take the same whether anybody could read along or not."""
    rows = [
        {key: row[key] for key in ("match_free", "match_dear")} for row in random_rows(Random(1), 20, ("free", "dear"), 30, lookup=False)
    ]
    along, blind = world_of(tmp_path / "along", rows), world_of(tmp_path / "blind", rows, read_along=0.0)
    for action in (FREE, DEAR, NONE):
        np.testing.assert_array_equal(replay(along, FixedPolicy(action)).latency_ms, replay(blind, FixedPolicy(action)).latency_ms)
    np.testing.assert_array_equal(cheapest(along).latency_ms, cheapest(blind).latency_ms)


def test_a_network_that_always_chooses_one_arm_does_not_look() -> None:
    """It chooses the arm whatever it sees, keeps its shape, and can go on learning, as its hidden layers are those of the other."""
    rng = np.random.default_rng(0)
    shapes = [(8, 5), (8, 8), (3, 8)]
    weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    learned = NetworkPolicy(np.ones(5, np.float32), weights, [rng.normal(size=n).astype(np.float32) for n, _ in shapes])
    fixed = learned.always(1)
    assert (learned.looks, fixed.looks, fixed.widths) == (True, False, learned.widths)
    assert set(fixed.batch(rng.normal(size=(50, 5)).astype(np.float32))) == {1}
    np.testing.assert_array_equal(fixed.layers()[0][0], weights[0])


def test_one_text_or_many_pay_and_see_the_same(tmp_path: Path) -> None:
    """The vectorised environment and the single one agree, and so does what a round says it took."""
    rows = [
        {key: row[key] for key in ("match_free", "match_dear")} for row in random_rows(Random(2), 6, ("free", "dear"), 20, lookup=False)
    ]
    world, reward = world_of(tmp_path, rows), RewardConfig(reference_ms_per_token=4.0)
    vector, single = ReplayVectorEnv(1, world=world, reward=reward), ReplayDecodingEnv(world=world, reward=reward)
    observations, _ = vector.reset(seed=1)
    rng = np.random.default_rng(0)
    for _ in range(4):
        np.testing.assert_array_equal(single.reset(options={"prompt": int(vector.episodes.texts[0])})[0], observations[0])
        done = False
        while not done:
            action = int(rng.integers(3))
            observations, rewards, _, _, info = vector.step(np.array([action]))
            last, paid, done, _, _ = single.step(action)
            assert paid == pytest.approx(rewards[0])
            np.testing.assert_array_equal(last, info["final_obs"][0] if done else observations[0])


@pytest.mark.parametrize(("share_of_target", "along"), [(0.0, []), (0.0099, []), (0.01, [0]), (0.2, [0]), (0.25, [0, 1])])
def test_who_reads_along_is_a_matter_of_cost(tmp_path: Path, share_of_target: float, along: list[int]) -> None:
    """The cheapest, as many as together take at most the share of the target's forward pass that the configuration gives."""
    hindsight = world_of(tmp_path, [ROW], share_of_target).hindsight
    assert hindsight is not None
    assert hindsight.along.tolist() == along


def test_what_can_be_decoded_live_has_no_hindsight(tmp_path: Path) -> None:
    """A recording with all columns has the features that decoding itself computes, and nobody reads along."""
    traces = load_traces(write_traces(tmp_path / "all.parquet", random_rows(Random(3), 3)))
    world = ReplayWorld(traces, made_up_profile(10, a=0.01, b=1), ArmTable([Arm("a", 2)]))
    assert world.features == FeatureTracker(("a", "b")).table == feature_table(("a", "b"))
    assert world.hindsight is None


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_nothing_and_everything(value: float) -> None:
    """The message names the key."""
    with pytest.raises(UserError, match=r"replay\.read_along"):
        ReplayConfig(read_along=value)
