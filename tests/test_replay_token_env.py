"""Dispatch by token in replay: both checkers, worked examples, an arm done by hand, and a learner that learns it."""

import warnings
from pathlib import Path
from random import Random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import dispatch_rl  # noqa: F401  (registers the environment)
from dispatch_rl.config import PPOConfig, RewardConfig, TrainConfig
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.draft_features import draft_feature_table
from dispatch_rl.envs.live_tokens import LiveTokenEnv
from dispatch_rl.envs.replay_tokens import ReplayTokenEnv, watching
from dispatch_rl.errors import UserError
from dispatch_rl.replay.profile import TARGET, ForwardLatency, Profile
from dispatch_rl.replay.running import best_fixed_latency_ms
from tests.recordings import Recorded
from tests.traces import made_up_profile, made_up_world, random_rows

ENV_ID = "dispatch_rl/ReplayTokenDispatch-v0"
REWARD = RewardConfig(reference_ms_per_token=10.0, clip=1e9)
A, B, LOOKUP, VERIFY = range(4)
ROW: dict[str, Any] = {
    "prompt": [7, 8],
    "path": [1, 2, 3, 4, 5, 6],
    "limit": 30,
    "match_a": [True, True, False, True, False, True],
    "margin_a": [5.0, 3.0, 2.0, 0.5, 4.0, 6.0],
    "entropy_a": [0.1, 0.2, 0.3, 2.0, 0.1, 0.1],
    "beyond_margin_a": [[], [], [3.0, 1.5, 0.2, 9.0], [], [], []],
    "beyond_entropy_a": [[], [], [0.1, 0.2, 0.3, 0.4], [], [], []],
    "match_b": [True, True, False, True, True, True],
    "margin_b": [5.5, 3.5, 2.5, 1.5, 4.5, 6.5],
    "entropy_b": [0.15, 0.25, 0.35, 2.5, 0.15, 0.15],
    "beyond_margin_b": [[], [], [1.25, 2.25, 3.25, 4.25], [], [], []],
    "beyond_entropy_b": [[], [], [0.5, 0.6, 0.7, 0.8], [], [], []],
}
METADATA = {"students": ["a", "b"], "max_draft_length": 4}


def example(folder: Path, profile: Profile | None = None, **changed: Any) -> ReplayTokenEnv:
    """Return the environment on the text above, at its beginning."""
    row = {key: value for key, value in (ROW | changed).items() if value is not None}
    profile = profile or made_up_profile(10, overhead_ms=0.5, a=1, b=3)
    world = made_up_world(folder / "x", [row], [Arm("a", 4), Arm("b", 2)], profile, METADATA)
    env = ReplayTokenEnv(world=world, reward=REWARD)
    env.reset(seed=0)
    return env


def seen(env: ReplayTokenEnv, *actions: int) -> list[dict[str, float]]:
    """Do ``actions`` and return what is seen after each, by the names of the features."""
    names = [feature.name for feature in env.features]
    return [dict(zip(names, env.step(action)[0].tolist(), strict=True)) for action in actions]


def test_both_checkers_pass_without_a_warning(tmp_path: Path) -> None:
    """Gymnasium's checker, which asks for determinism, and Stable-Baselines3's; all warnings are errors."""
    world = made_up_world(tmp_path / "x.parquet", random_rows(Random(1), 20), [Arm("a", 4)], made_up_profile(10, a=1, b=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for render_mode in (None, "ansi", "rgb_array"):
            env = gym.make(ENV_ID, world=world, render_mode=render_mode).unwrapped
            check_env(env)
        sb3_check_env(env)
        sb3_check_env(example(tmp_path))


def test_the_documented_features_are_the_features() -> None:
    """The table of the live environment's docstring names them in their order."""
    documented = LiveTokenEnv.__doc__ or ""
    places = [documented.index(f" {feature.name} ") for feature in draft_feature_table(("small",))]
    assert places == sorted(places)


def test_a_student_goes_on_behind_its_own_wrong_token_as_recorded(tmp_path: Path) -> None:
    """From position 0, two right tokens, the wrong one of 2 nats, then what stands in ``beyond``; the fourth decision is the last."""
    env = example(tmp_path)
    assert [s["draft_margin"] for s in seen(env, A, A, A)] == [5, 3, 2]
    *_, finished, _, info = env.step(A)
    assert not finished
    assert (info["round"].num_accepted, info["round"].emitted, info["round"].drafted) == (2, (1, 2, 3), (1, 2, None, None))
    # Behind position 4, where a is wrong and ends the text, there is nothing to draft.
    env.step(VERIFY)
    last = seen(env, A, A)
    assert [(s["draft_length"], s["draft_passed"], s["draft_margin"]) for s in last] == [(1, 0, 4), (1, 1, 4)]


def test_what_is_assumed_where_another_takes_over_behind_a_wrong_token(tmp_path: Path) -> None:
    """b too is wrong at position 2, so behind a's wrong token it is as sure as behind its own; where b is right, as on the path."""
    env = example(tmp_path)
    taken = seen(env, A, B, A)  # a is wrong at 2
    assert [s["draft_margin"] for s in taken] == [5, 3.5, 2]
    env.reset(seed=0)
    seen(env, VERIFY)
    assert [s["draft_margin"] for s in seen(env, A, A, B)] == [3, 2, 1.25]
    lists: dict[str, Any] = {f"beyond_{key}_a": [*ROW[f"beyond_{key}_a"][:4], [1.0] * 4, []] for key in ("margin", "entropy")}
    env = example(tmp_path / "longer", **lists)
    seen(env, VERIFY, VERIFY, VERIFY, VERIFY)
    assert [s["draft_margin"] for s in seen(env, A, B)] == [4, 6.5]
    record = env.step(VERIFY)[4]["round"]
    assert (record.num_accepted, record.students) == (0, ("a", "b"))


def test_prompt_lookup_finds_what_stood_before(tmp_path: Path) -> None:
    """Behind 1 9 4 1, it proposes 9 4 1, of which two stand. Behind a student's wrong token it finds nothing, nor without tokens."""
    env = example(tmp_path, prompt=[1, 9, 4, 1], path=[9, 4, 3, 4, 5, 6])
    first = seen(env, LOOKUP, LOOKUP, LOOKUP)
    assert [s["draft_length"] for s in first] == [1, 2, 3]
    assert [s["drafted_by_lookup"] for s in first] == [1, 1, 1]
    record = env.step(VERIFY)[4]["round"]
    assert (record.drafted, record.num_accepted, record.emitted) == ((9, 4, 1), 2, (9, 4, 3))
    env.reset(seed=0)
    seen(env, A, A, A)  # the third is wrong
    assert env.step(LOOKUP)[4]["round"].students == ("a", "a", "a")
    env = example(tmp_path / "none", path=None, prompt=None)
    assert [s["draft_passed"] for s in seen(env, LOOKUP)] == [1]


def test_handing_over_costs_the_other_students_catch_up(tmp_path: Path) -> None:
    """b reads text and draft at 0.1 ms a token; going on costs what one token costs; each look at a choice 0.25 ms."""
    b = ForwardLatency((1, 101), (1,), ((3.0,), (13.0,)))
    models = {TARGET: ForwardLatency((1, 11), (1,), ((10.0,), (15.0,))), "a": ForwardLatency((1,), (1,), ((1.0,),)), "b": b}
    env = example(tmp_path, Profile("made up", "none", models, overhead_ms=0.5, token_ms=0.125, watch_ms=0.25))

    def spent(action: int) -> float:
        info = env.step(action)[4]
        tokens = 0 if info["round"] is None else len(info["round"].emitted)
        return float(10 * (tokens - info["reward/latency"]))

    assert spent(A) == pytest.approx(1.25)
    assert spent(B) == pytest.approx(3 + 0.1 * 2 + 0.25)  # prompt of two and one draft token: three unread
    assert spent(B) == pytest.approx(3 + 0.25)
    assert spent(VERIFY) == pytest.approx(10 + 0.5 * 3 + 0.5 + 0.125 * 3)  # position 2 was wrong: three emitted
    # b has read up to the two tokens that stood, so the third is unread alone; a has read none of what b drafted.
    assert env.drafts.unread() == [2, 0]


def test_without_recorded_margins_their_features_are_off(tmp_path: Path) -> None:
    """And what no student's recording tells completely."""
    env = example(tmp_path, beyond_margin_b=None)
    names = [feature.name for feature in env.features]
    assert "draft_entropy" in names
    assert not any("margin" in name for name in names)
    assert env.step(A)[0] in env.observation_space


def test_a_draft_longer_than_recorded_is_refused(tmp_path: Path) -> None:
    """Behind a wrong token no more is known."""
    world = example(tmp_path).world
    with pytest.raises(UserError, match=r"longest_draft: 5 is not in 1 \.\.\. 4"):
        ReplayTokenEnv(world=world, reward=REWARD, longest_draft=5)


def test_a_configuration_is_recorded_with_margins() -> None:
    """Its arms do not matter here, but margins are recorded only if one of them watches."""
    assert not TrainConfig().watches
    assert watching(None).watches
    assert watching(TrainConfig()).watches
    given = TrainConfig(arms=[Arm("small", 3, max_entropy=1.0)])
    assert watching(given) is given


def test_an_arm_done_token_by_token(recorded: Recorded) -> None:
    """ "small until its margin is below x" drafts what ``min_margin`` does and the unclear token, in the same time."""
    world, name = recorded.world, recorded.world.traces.students[0]
    action = next(i for i, arm in enumerate(world.arms) if arm == Arm(name, 13, min_margin=0.31))
    env = ReplayTokenEnv(world=world, reward=REWARD)
    margin, verify = [feature.name for feature in env.features].index("draft_margin"), len(env.action_names) - 1
    for text in world.texts:
        env.reset(options={"prompt": int(text)})
        finished = False
        while not finished:
            arm = world.outcomes(np.array([text]), env.drafts.episode.emitted, np.array([action]))
            unclear, record = False, None
            while record is None:
                observation, _, finished, _, info = env.step(verify if unclear else 0)
                unclear, record = observation[margin] < 0.31, info["round"]
            assert len(record.drafted) == arm.forwards[0]
            assert min(record.num_accepted, arm.drafted[0]) == arm.accepted[0]
            assert record.draft_ms == pytest.approx(2.0 * arm.forwards[0])


def test_ppo_learns_to_stop_where_a_student_is_unsure(tmp_path: Path) -> None:
    """``a`` is right where its margin is large. PPO finds out that the first unclear token is the last, as no plain arm can."""
    from dispatch_rl.learning import build_learner, extract_policy

    rng, rows = Random(0), []
    for _ in range(48):
        right = [rng.random() < 0.8 for _ in range(48)]
        margin = [4.0 + rng.random() if hit else rng.random() for hit in right]
        beyond = [[] if hit else [3.0] * 8 for hit in right]
        rows.append({"path": list(range(48)), "match_a": right, "margin_a": margin, "beyond_margin_a": beyond})
    arms, metadata = [Arm("a", length) for length in range(1, 9)], {"students": ["a"], "max_draft_length": 8}
    world = made_up_world(tmp_path / "x", rows, arms, made_up_profile(10, a=1), metadata)
    envs = DummyVecEnv([lambda: ReplayTokenEnv(world=world) for _ in range(16)])
    one = ReplayTokenEnv(world=world)
    ppo = PPOConfig(rollout_steps=4096, batch_size=512, gamma=0.98, n_epochs=8, learning_rate=0.002)
    model = build_learner(envs, one.features, TrainConfig(num_envs=16, ppo=ppo), None)
    assert isinstance(model, PPO)
    model.learn(32_768)
    policy = extract_policy(model)
    latency_ms = tokens = 0.0
    for text in world.texts:
        observation, _ = one.reset(options={"prompt": int(text)})
        finished = False
        while not finished:
            observation, _, finished, _, _ = one.step(policy(observation))
        latency_ms += sum(record.latency_ms for record in one.rounds)
        tokens += sum(len(record.emitted) for record in one.rounds)
    fixed = best_fixed_latency_ms(world)
    stopping = made_up_world(tmp_path / "y", rows, [Arm("a", 8, min_margin=2.0)], world.profile, metadata)
    assert latency_ms / tokens < fixed - 0.8 * (fixed - best_fixed_latency_ms(stopping))
