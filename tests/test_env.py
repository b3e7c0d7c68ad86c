"""The live environment passes both checkers, shows what it does, and pays what it says."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import dispatch_rl  # noqa: F401  (registers the environment)
from dispatch_rl.config import DecodingConfig, PromptConfig, RewardConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.envs.live import LiveDecodingEnv
from dispatch_rl.envs.rendering import STRIP_SHAPE
from dispatch_rl.errors import UserError

ENV_ID = "dispatch_rl/LiveDecoding-v0"


@pytest.fixture
def env(pocket: Family) -> LiveDecodingEnv:
    """A short environment on the shared family."""
    config = DecodingConfig(prompts=PromptConfig(max_new_tokens=40))
    return LiveDecodingEnv(config, reward=RewardConfig(reference_ms_per_token=3.0, clip=1e9), family=pocket, render_mode="ansi")


def test_both_checkers_pass_without_a_warning() -> None:
    """``gymnasium.make`` by id, then Gymnasium's checker and Stable-Baselines3's, all warnings being errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make(ENV_ID)
        check_env(made.unwrapped)
        sb3_check_env(made.unwrapped)
        made.close()


def test_rewards_sum_to_tokens_minus_time(env: LiveDecodingEnv) -> None:
    """Over a text the rewards are its tokens minus its latency in units of the target alone."""
    env.reset(seed=1)
    total, finished = 0.0, False
    while not finished:
        _, reward, finished, truncated, info = env.step(env.action_space.sample())
        total += reward
        assert not truncated
        assert info["round"] is env.session.rounds[-1]
    tokens = len(env.session.text_tokens) - 1
    latency_ms = sum(record.latency_ms for record in env.session.rounds)
    assert total == pytest.approx(tokens - latency_ms / 3.0)


def test_acceptance_is_paid_only_on_request(pocket: Family) -> None:
    """Its weight times accepted / drafted, in its own entry of ``info``; the clip bounds the sum."""
    reward = RewardConfig(acceptance_weight=2.0, reference_ms_per_token=3.0, clip=0.5)
    env = LiveDecodingEnv(DecodingConfig(prompts=PromptConfig(max_new_tokens=24)), reward=reward, family=pocket)
    env.reset(seed=0)
    _, paid, _, _, info = env.step(0)
    record = info["round"]
    assert info["reward/acceptance"] == pytest.approx(2.0 * record.num_accepted / len(record.drafted))
    assert paid == pytest.approx(np.clip(info["reward/latency"] + info["reward/acceptance"], -0.5, 0.5))


def test_the_same_seed_gives_the_same_prompts_and_texts(env: LiveDecodingEnv) -> None:
    """Time is real, but prompts and texts are a function of the seed; another action sequence changes neither."""

    def texts(action: int) -> list[list[int]]:
        env.reset(seed=7)
        found = []
        for _ in range(3):
            while not env.session.finished:
                env.step(action)
            found.append(env.session.tokens)
            env.reset()
        return found

    assert texts(0) == texts(4)


def test_a_prompt_of_ones_own(env: LiveDecodingEnv) -> None:
    """``options`` takes a text; an empty one is refused in one line."""
    env.reset(options={"prompt": "def f(x):\n"})
    assert env.family.decode(env.session.tokens).startswith("def f(x):\n")
    with pytest.raises(UserError, match="prompt: it is empty"):
        env.reset(options={"prompt": ""})
    with pytest.raises(UserError, match=r"options\['prompt'\]: 5 is no text"):
        env.reset(options={"prompt": 5})


def test_a_text_that_has_ended_wants_a_reset(env: LiveDecodingEnv) -> None:
    """In the words of Gymnasium, as in replay."""
    env.reset(seed=1)
    while not env.session.finished:
        env.step(0)
    with pytest.raises(gym.error.ResetNeeded, match="the text has ended"):
        env.step(0)


def test_texts_without_anything_to_decide_come_to_an_end(pocket: Family) -> None:
    """A target that ends every text with its first token is told of, not waited for."""
    silent = replace(pocket, eos_token_ids=frozenset(range(pocket.vocab)))
    env = LiveDecodingEnv(DecodingConfig(), reward=RewardConfig(reference_ms_per_token=3.0), family=silent)
    with pytest.raises(UserError, match="100 texts, one after the other, end with their first token"):
        env.reset(seed=0)


def test_info_has_the_same_keys_at_reset_and_step(env: LiveDecodingEnv) -> None:
    """Recorders rely on it."""
    _, at_reset = env.reset(seed=3)
    *_, at_step = env.step(0)
    assert at_reset.keys() == at_step.keys()


def test_ansi_shows_the_text_and_who_wrote_it(env: LiveDecodingEnv) -> None:
    """One line a round: arm, accepted / drafted, and the emitted tokens with colours and entropies."""
    env.reset(seed=2)
    for action in (0, 1, 3, 4):
        if not env.session.finished:
            env.step(action)
    lines = env.render().splitlines()
    assert len(lines) == len(env.session.rounds)
    for line, record in zip(lines, env.session.rounds, strict=True):
        assert line.split()[0] == record.arm
        assert f"{record.num_accepted}/{len(record.drafted)}" in line
        assert line.count("\x1b[2m") == len(record.emitted)


def test_rgb_strip_is_a_picture(pocket: Family) -> None:
    """Its shape never changes, and a decoded text leaves marks at its right end."""
    config = DecodingConfig(prompts=PromptConfig(max_new_tokens=40))
    env = LiveDecodingEnv(config, reward=RewardConfig(reference_ms_per_token=3.0), family=pocket, render_mode="rgb_array")
    env.reset(seed=2)
    assert not env.render().any()
    env.step(0)
    picture = env.render()
    assert (picture.shape, picture.dtype) == (STRIP_SHAPE, np.uint8)
    assert picture[:, -8:].any()
    assert not picture[:, :100].any()


def test_step_before_reset_says_so(env: LiveDecodingEnv) -> None:
    """Gymnasium's own error."""
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
