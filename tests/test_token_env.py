"""Dispatch by token, live: both checkers, what is paid, what a decision does, and texts that take turns."""

import warnings
from dataclasses import replace
from time import sleep
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import dispatch_rl  # noqa: F401  (registers the environment)
from dispatch_rl.config import DecodingConfig, PromptConfig, RewardConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.envs.live_tokens import LiveTokenEnv
from dispatch_rl.errors import UserError

ENV_ID = "dispatch_rl/TokenDispatch-v0"
SMALL, MEDIUM, LARGE, LOOKUP, VERIFY = range(5)
CONFIG = DecodingConfig(prompts=PromptConfig(max_new_tokens=40))
REWARD = RewardConfig(reference_ms_per_token=3.0, clip=1e9)


def make(family: Family, longest_draft: int = 24, **options: Any) -> LiveTokenEnv:
    """Return an environment on the shared family, in the middle of nothing."""
    return LiveTokenEnv(CONFIG, reward=REWARD, family=family, longest_draft=longest_draft, **options)


def named(env: LiveTokenEnv, observation: np.ndarray) -> dict[str, float]:
    """Return an observation by the names of its features."""
    return {feature.name: float(value) for feature, value in zip(env.features, observation, strict=True)}


def test_both_checkers_pass_without_a_warning() -> None:
    """``gymnasium.make`` by id, then Gymnasium's checker and Stable-Baselines3's, all warnings being errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make(ENV_ID)
        check_env(made.unwrapped)
        sb3_check_env(made.unwrapped)
        made.close()


def test_rewards_sum_to_tokens_minus_time(pocket: Family) -> None:
    """Tokens are credited by verification; what passes between two steps is nobody's time."""
    env = make(pocket)
    env.reset(seed=1)
    env.action_space.seed(1)
    total, finished = 0.0, False
    while not finished:
        _, reward, finished, _, info = env.step(env.action_space.sample())
        assert (info["reward/latency"] <= 0) or info["round"] is not None
        total += reward
    latency_ms = sum(record.latency_ms for record in env.session.rounds)
    assert total == pytest.approx(len(env.session.text_tokens) - 1 - latency_ms / 3.0)
    env.reset(seed=2)
    env.step(SMALL)
    sleep(0.5)
    *_, info = env.step(VERIFY)
    assert info["round"].overhead_ms < 400


def test_the_draft_is_seen_token_by_token(pocket: Family) -> None:
    """Length, drafter, what is unread, and the margins, of which the least stays; a new round begins with nothing."""
    env = make(pocket)
    before = named(env, env.reset(seed=3)[0])
    assert (before["draft_length"], before["draft_left"], before["draft_least_margin"]) == (0, 24, 20)
    first = named(env, env.step(SMALL)[0])
    assert (first["draft_length"], first["draft_left"], first["drafted_by_small"], first["unread_small"]) == (1, 23, 1, 0)
    assert first["draft_margin"] == first["draft_least_margin"] < 20
    assert first["unread_large"] == before["unread_large"] + 1
    second = named(env, env.step(LARGE)[0])
    assert (second["drafted_by_small"], second["drafted_by_large"], second["unread_large"], second["unread_small"]) == (0, 1, 0, 1)
    assert second["draft_entropy_sum"] == pytest.approx(first["draft_entropy"] + second["draft_entropy"], abs=1e-5)
    assert second["draft_least_margin"] == min(first["draft_margin"], second["draft_margin"])
    assert [first[name] for name in ("entropy", "position")] == [second[name] for name in ("entropy", "position")]
    observation, *_, info = env.step(VERIFY)
    assert info["round"].students == ("small", "large")
    assert named(env, observation)["draft_length"] == 0


def test_a_round_ends_when_its_decisions_are_used_up(pocket: Family) -> None:
    """The third verifies; prompt lookup without a match passes, which is a decision too."""
    env = make(pocket, 3)
    before, _ = env.reset(seed=4)
    while named(env, before)["lookup_match"] > 0:
        before, _ = env.reset()
    assert [env.step(SMALL)[4]["round"] is not None for _ in range(3)] == [False, False, True]
    assert len(env.session.rounds[0].drafted) == 3
    env.reset(options={"prompt": "x"})
    assert env.session.observation()[5] == 0  # lookup_match
    passed = named(env, env.step(LOOKUP)[0])
    assert (passed["draft_passed"], passed["draft_left"], passed["draft_length"]) == (1, 2, 0)


def test_where_only_one_token_is_left_everything_verifies(pocket: Family) -> None:
    """There is no room for a draft."""
    env = LiveTokenEnv(DecodingConfig(prompts=PromptConfig(max_new_tokens=2)), reward=REWARD, family=pocket)
    env.reset(seed=0)
    *_, finished, _, info = env.step(SMALL)
    assert finished
    assert info["round"].students == ()


def test_students_draft_nothing_behind_the_end(pocket: Family) -> None:
    """If every token ends a text, a second decision passes."""
    env = make(pocket)
    env.reset(seed=5)
    env.family = replace(pocket, eos_token_ids=frozenset(range(pocket.vocab)))
    env.step(SMALL)
    observation, *_ = env.step(MEDIUM)
    seen = named(env, observation)
    assert (seen["draft_length"], seen["draft_passed"], seen["draft_left"]) == (1, 1, 22)


def test_texts_that_share_a_family_take_turns_in_the_middle_of_rounds(pocket: Family) -> None:
    """Two environments step by step beside each other decode what each decodes alone."""
    sampled = DecodingConfig(prompts=PromptConfig(max_new_tokens=24), sampling=Sampling(0.6))
    rng = np.random.default_rng(0)
    actions = rng.integers(5, size=200).tolist()

    def alone(seed: int) -> list[int]:
        env = LiveTokenEnv(sampled, reward=REWARD, family=pocket)
        env.reset(seed=seed)
        for action in actions:
            if env.session.finished:
                break
            env.step(action)
        return [*env.session.tokens, *(record.num_accepted for record in env.session.rounds)]

    envs = [LiveTokenEnv(sampled, reward=REWARD, family=pocket) for _ in range(2)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    for action in actions:
        for env in envs:
            if not env.session.finished:
                env.step(action)
    together = [[*env.session.tokens, *(record.num_accepted for record in env.session.rounds)] for env in envs]
    assert together == [alone(0), alone(1)]


def test_ansi_shows_who_drafted(pocket: Family) -> None:
    """One line a round, named after its drafters."""
    env = make(pocket, render_mode="ansi")
    env.reset(seed=2)
    for action in (SMALL, SMALL, LARGE, VERIFY, VERIFY):
        env.step(action)
    first, second = env.render().splitlines()
    assert (first.split()[0], second.split()[0]) == ("small+large-3", "none")


@pytest.mark.parametrize("longest", [0, 256])
def test_a_draft_of_no_length_is_refused(pocket: Family, longest: int) -> None:
    """One line that names it; so is an action that there is not, and a step before the reset."""
    with pytest.raises(UserError, match=rf"longest_draft: {longest} is not in 1 \.\.\. 255"):
        make(pocket, longest)
    env = make(pocket)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=r"5 is not in 0 \.\.\. 4"):
        env.step(5)
    while not env.step(4)[2]:
        pass
    with pytest.raises(gym.error.ResetNeeded, match="the text has ended"):
        env.step(0)
