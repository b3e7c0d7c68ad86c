"""The replay environments: both checkers, one text or thousands, and what Stable-Baselines3 sees of them agree."""

import warnings
from pathlib import Path
from random import Random

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import dispatch_rl  # noqa: F401  (registers the environment)
from dispatch_rl.config import RewardConfig, TrainConfig
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.envs.replay import ReplayDecodingEnv
from dispatch_rl.envs.replay_vector import ReplayVecEnv, ReplayVectorEnv
from dispatch_rl.errors import UserError
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.running import best_fixed_latency_ms, fixed_latencies_ms, replay
from dispatch_rl.replay.traces import load_traces
from dispatch_rl.replay.world import ReplayWorld
from tests.traces import made_up_profile, random_rows, write_traces

ENV_ID = "dispatch_rl/ReplayDecoding-v0"
ARMS = [Arm("a", 1), Arm("a", 4), Arm("b", 2), Arm("b", 6), Arm("lookup", 3), Arm("none")]
REWARD = RewardConfig(reference_ms_per_token=4.0, acceptance_weight=0.5, clip=3.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ReplayWorld:
    """Sixty made-up texts."""
    path = write_traces(tmp_path_factory.mktemp("traces") / "made-up.parquet", random_rows(Random(1), 60, longest=30))
    return ReplayWorld(load_traces(path), made_up_profile(10.0, 0.3, 0.1, a=1.0, b=3.0), ArmTable(ARMS))


def test_both_checkers_pass_without_a_warning(world: ReplayWorld) -> None:
    """Gymnasium's checker, which asks for determinism, and Stable-Baselines3's; all warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for render_mode in (None, "ansi", "rgb_array"):
            env = gym.make(ENV_ID, world=world, render_mode=render_mode).unwrapped
            check_env(env)
        sb3_check_env(env)


def test_one_text_or_many_is_the_same(world: ReplayWorld) -> None:
    """The vectorised environment gives every episode the observations, rewards and ends of the single one on its text."""
    vector = ReplayVectorEnv(8, world=world, reward=REWARD)
    observations, _ = vector.reset(seed=3)
    singles = [ReplayDecodingEnv(world=world, reward=REWARD) for _ in range(8)]
    for single, text, seen in zip(singles, vector.episodes.texts, observations, strict=True):
        np.testing.assert_array_equal(single.reset(options={"prompt": int(text)})[0], seen)
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(60):
        actions = rng.integers(len(ARMS), size=8)
        observations, rewards, finished, truncated, info = vector.step(actions)
        assert not truncated.any()
        for i, single in enumerate(singles):
            seen, reward, done, _, _ = single.step(int(actions[i]))
            assert done == finished[i]
            assert reward == pytest.approx(rewards[i])
            np.testing.assert_array_equal(seen, info["final_obs"][i] if done else observations[i])
            if done:
                ends += 1
                np.testing.assert_array_equal(single.reset(options={"prompt": int(vector.episodes.texts[i])})[0], observations[i])
    assert ends > 8


def test_every_text_comes_once_before_any_comes_again(world: ReplayWorld) -> None:
    """In an order that the seed decides."""

    def begun(seed: int) -> list[int]:
        env = ReplayVectorEnv(4, world=world, reward=REWARD)
        env.reset(seed=seed)
        texts: list[int] = env.episodes.texts.tolist()
        while len(texts) < len(world.texts):
            *_, finished, _, _ = env.step(np.full(4, 5))
            texts += env.episodes.texts[finished].tolist()
        return texts[: len(world.texts)]

    assert sorted(begun(0)) == sorted(world.texts.tolist())
    assert begun(0) == begun(0) != begun(1)


def test_rewards_without_a_given_reference_measure_against_the_best_fixed_arm(world: ReplayWorld) -> None:
    """Always taking that arm pays zero over all texts: emitted tokens minus latency in units of its own."""
    env = ReplayDecodingEnv(world=world, reward=RewardConfig(clip=1e9))
    best = int(fixed_latencies_ms(world).sum(axis=1).argmin())
    assert env.reward.reference_ms_per_token == best_fixed_latency_ms(world)
    total = 0.0
    for text in world.texts:
        env.reset(options={"prompt": int(text)})
        done = False
        while not done:
            _, reward, done, _, _ = env.step(best)
            total += reward
    assert total == pytest.approx(0, abs=1e-6)


def test_stable_baselines_sees_episode_sums_and_last_observations(world: ReplayWorld) -> None:
    """Its own names: ``episode`` with return and length, and ``terminal_observation``."""
    env = ReplayVecEnv(ReplayVectorEnv(4, world=world, reward=REWARD))
    env.seed(5)
    env.reset()
    returns, lengths = np.zeros(4), np.zeros(4)
    for _ in range(40):
        _, rewards, finished, infos = env.step(np.full(4, 5))
        returns += rewards
        lengths += 1
        for i, info in enumerate(infos):
            assert ("episode" in info) == ("terminal_observation" in info) == finished[i]
            if finished[i]:
                assert info["episode"]["r"] == pytest.approx(returns[i], rel=1e-5)
                assert info["episode"]["l"] == lengths[i]
                returns[i] = lengths[i] = 0


def test_a_text_that_is_not_there_is_refused(world: ReplayWorld) -> None:
    """In one line; and a step before the reset, or after the end, is Gymnasium's own error."""
    env = ReplayDecodingEnv(world=world, reward=REWARD)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    with pytest.raises(UserError, match=r"options\['prompt'\]: 999 is no text"):
        env.reset(options={"prompt": 999})
    with pytest.raises(UserError, match=r"options\['prompt'\]: 'a' is no text"):
        env.reset(options={"prompt": "a"})
    with pytest.raises(UserError, match=r"options\['prompt'\]: True is no text"):
        env.reset(options={"prompt": True})


def test_what_many_environments_cannot_do_is_refused(world: ReplayWorld) -> None:
    """A text by number, and a seed for each: in one line, not in silence."""
    env = ReplayVectorEnv(3, world=world, reward=REWARD)
    with pytest.raises(UserError, match=r"options\['prompt'\]: the texts of many environments are shuffled"):
        env.reset(options={"prompt": 1})
    with pytest.raises(UserError, match=r"seed: \[1, 2, 3\] is not one integer"):
        env.reset(seed=[1, 2, 3])  # type: ignore[arg-type]


@pytest.mark.parametrize("action", [-1, len(ARMS)])
def test_an_action_that_is_no_arm_is_refused(world: ReplayWorld, action: int) -> None:
    """Alone and among others, before anything has moved."""
    env = ReplayDecodingEnv(world=world, reward=REWARD)
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=rf"{action} is not in 0 \.\.\. {len(ARMS) - 1}"):
        env.step(action)
    assert env.rounds == []
    vector = ReplayVectorEnv(3, world=world, reward=REWARD)
    before, _ = vector.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction):
        vector.step(np.array([0, action, 0]))
    np.testing.assert_array_equal(vector.episodes.observations(), before)


def test_ppo_learns_a_world_whose_best_arm_is_visible(tmp_path: Path) -> None:
    """High entropy at the last token: ``a`` fails; low entropy: it never does. PPO finds what no fixed arm can, and nearly all of it."""
    from dispatch_rl.learning import build_learner, extract_policy

    rng = Random(0)
    rows = []
    for _ in range(64):
        hard = [rng.random() < 0.5 for _ in range(8)]
        match = [not hard[t // 8] for t in range(64)]
        entropy = [float(3 * hard[min(t + 1, 63) // 8]) for t in range(64)]
        rows.append({"path": list(range(64)), "match_a": match, "entropy": entropy})
    traces = load_traces(write_traces(tmp_path / "visible.parquet", rows))
    made = ReplayWorld(traces, made_up_profile(10.0, a=2.0), ArmTable([Arm("a", 8), Arm("none")]))
    config = TrainConfig(num_envs=64, algo="ppo")
    model = build_learner(ReplayVecEnv(ReplayVectorEnv(64, config, world=made)), made.features, config, None)
    assert isinstance(model, PPO)
    model.learn(131_072)
    learned: NetworkPolicy = extract_policy(model)
    fixed = best_fixed_latency_ms(made)
    # By hand: an easy block of 8 costs 8 * 2 + 10 for the 9 tokens of one round, a hard block 8 * 10.
    best = (26 * 8 / 9 + 80) / 16
    reached = replay(made, learned).latency_ms_per_token
    assert reached < fixed - 0.8 * (fixed - best)
