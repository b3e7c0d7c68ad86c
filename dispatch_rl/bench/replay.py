"""How fast replay is: bare steps, and PPO on it against the same PPO on an environment that does nothing."""

import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dispatch_rl import cli
from dispatch_rl.config import PPOConfig, TrainConfig
from dispatch_rl.errors import UserError, check_seed

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from dispatch_rl.replay.profile import Profile
    from dispatch_rl.replay.world import ReplayWorld

_TEXT = 128
_STUDENTS = {"small": 0.6, "medium": 0.8, "large": 0.9}
"""Made-up students and how often they match."""


@dataclass(frozen=True)
class ReplayBenchConfig:
    """Steps per second on made-up traces."""

    tokens: int = 1_000_000
    """Recorded tokens."""
    num_envs: int = 4_096
    """Texts side by side in the bare steps."""
    seconds: float = 5.0
    """How long bare steps are taken."""
    ppo_steps: int = 131_072
    """Rounds that PPO learns from in each run."""
    ppo_envs: int = 256
    """Texts side by side for PPO."""
    batch_size: int = 2_048
    """PPO's rounds per gradient step."""
    n_epochs: int = 4
    """PPO's passes over the rounds of an update."""
    repeats: int = 4
    """Pairs of PPO runs."""
    seed: int = 0
    """Seed of everything."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        for key in ("tokens", "num_envs", "seconds", "ppo_steps", "ppo_envs", "batch_size", "n_epochs", "repeats"):
            if not getattr(self, key) > 0:
                raise UserError(f"{key}: {getattr(self, key)} is not above 0")
        check_seed("seed", self.seed)


def made_up_world(tokens: int, seed: int) -> "ReplayWorld":
    """Write random traces of about so many tokens to a file, load them, and return them with three students, prompt lookup and none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.replay.traces import load_traces
    from dispatch_rl.replay.world import ReplayWorld

    texts = max(1, tokens // _TEXT)
    rng = np.random.default_rng(seed)
    offsets = np.arange(0, (texts + 1) * _TEXT, _TEXT)

    def column(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))

    size = texts * _TEXT
    columns = {"path": column(rng.integers(2_048, size=size, dtype=np.int32))}
    columns |= {name: column(rng.random(size, dtype=np.float32)) for name in ("entropy", "top1_probability", "margin")}
    columns |= {f"match_{name}": column(rng.random(size, dtype=np.float32) < rate) for name, rate in _STUDENTS.items()}
    columns |= {f"lookup_{name}": column(rng.integers(5, size=size).astype(np.uint8)) for name in ("match", "drafted", "accepted")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made-up.parquet"
        pq.write_table(pa.table(columns), path)
        traces = load_traces(path)
    return ReplayWorld(traces, made_up_profile(), ArmTable(TrainConfig().arm_list()))


def made_up_profile() -> "Profile":
    """Return latencies of the kind that GPUs show: a large target, cheap students, catching up nearly free."""
    from dispatch_rl.replay.profile import ForwardLatency, Profile

    costs = {"target": 10.0, "small": 1.0, "medium": 2.5, "large": 5.0}
    grid = {name: ForwardLatency((1, 65), (1, 1_024), ((c, c * 1.1), (c * 1.5, c * 1.6))) for name, c in costs.items()}
    return Profile("made up", "none", grid, overhead_ms=0.2)


def check_exact(world: "ReplayWorld", seed: int) -> None:
    """See that the vectorised environment does what the single one does.

    Raises:
        UserError: They differ.
    """
    from dispatch_rl.config import RewardConfig
    from dispatch_rl.envs.replay import ReplayDecodingEnv
    from dispatch_rl.envs.replay_vector import ReplayVectorEnv

    reward = RewardConfig(reference_ms_per_token=1.0)
    single = ReplayDecodingEnv(world=world, reward=reward)
    vector = ReplayVectorEnv(4, world=world, reward=reward)
    vector.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for text in vector.episodes.texts[:1]:
        single.reset(options={"prompt": int(text)})
        finished = False
        while not finished:
            actions = rng.integers(len(world.arms), size=4)
            observation, paid, finished, _, _ = single.step(actions[0])
            observations, rewards, _, _, info = vector.step(actions)
            other = info["final_obs"][0] if finished else observations[0]
            if abs(paid - rewards[0]) > 1e-9 or not np.array_equal(observation, other):
                raise UserError("the single and the vectorised environment disagree; no speed is reported")


def bare_steps_per_second(world: "ReplayWorld", config: ReplayBenchConfig) -> float:
    """Step random arms in many texts for a while."""
    from dispatch_rl.config import RewardConfig
    from dispatch_rl.envs.replay_vector import ReplayVectorEnv

    env = ReplayVectorEnv(config.num_envs, world=world, reward=RewardConfig(reference_ms_per_token=1.0))
    env.reset(seed=config.seed)
    actions = np.random.default_rng(config.seed).integers(len(world.arms), size=(32, config.num_envs))
    for row in actions:
        env.step(row)
    steps, began = 0, perf_counter()
    while perf_counter() - began < config.seconds:
        for row in actions:
            env.step(row)
        steps += actions.size
    return steps / (perf_counter() - began)


def idle_env(env: "VecEnv") -> "VecEnv":
    """Return an environment with the spaces of ``env`` that does nothing: what PPO costs by itself."""
    from stable_baselines3.common.vec_env import VecEnv

    class IdleVecEnv(VecEnv):
        def __init__(self) -> None:
            super().__init__(env.num_envs, env.observation_space, env.action_space)
            self._observations = np.zeros((env.num_envs, *env.observation_space.shape), dtype=np.float32)  # type: ignore[misc]
            self._rewards = np.zeros(env.num_envs, dtype=np.float32)
            self._finished = np.zeros(env.num_envs, dtype=bool)
            self._infos: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]

        def reset(self) -> Any:
            return self._observations

        def step_async(self, actions: Any) -> None:
            return

        def step_wait(self) -> Any:
            return self._observations, self._rewards, self._finished, self._infos

        def close(self) -> None:
            return

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(env, attr_name)] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    return IdleVecEnv()


def ppo_time(env: "VecEnv", world: "ReplayWorld", config: ReplayBenchConfig) -> tuple[float, int]:
    """Return how long PPO takes on ``env`` (s), and how many steps it made: whole rollouts, at least as many as were asked for."""
    from dispatch_rl.learning import build_learner

    ppo = PPOConfig(rollout_steps=64 * config.ppo_envs, batch_size=config.batch_size, n_epochs=config.n_epochs)
    train = replace(TrainConfig(), algo="ppo", ppo=ppo, num_envs=config.ppo_envs, seed=config.seed)
    model = build_learner(env, world.features, train, None)
    began = perf_counter()
    model.learn(config.ppo_steps)
    return perf_counter() - began, model.num_timesteps


def bench_replay(config: ReplayBenchConfig) -> dict[str, Any]:
    """Return steps per second, bare and with PPO, and the ratio of PPO's speeds with its 95 % interval."""
    import torch

    from dispatch_rl.config import RewardConfig
    from dispatch_rl.envs.replay_vector import ReplayVecEnv, ReplayVectorEnv
    from dispatch_rl.statistics import ratio_of_sums

    torch.set_num_threads(1)
    began = perf_counter()
    world = made_up_world(config.tokens, config.seed)
    loading = perf_counter() - began
    check_exact(world, config.seed)
    bare = bare_steps_per_second(world, config)
    env = ReplayVecEnv(ReplayVectorEnv(config.ppo_envs, world=world, reward=RewardConfig(reference_ms_per_token=1.0)))
    contestants: dict[str, VecEnv] = {"replay": env, "idle": idle_env(env)}
    rng = np.random.default_rng(config.seed)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    ppo_time(env, world, replace(config, ppo_steps=64 * config.ppo_envs))
    for _ in range(config.repeats):
        for name in rng.permutation(list(contestants)):
            took, steps = ppo_time(contestants[name], world, config)
            seconds[name].append(took)
    ratio = ratio_of_sums(np.array(seconds["idle"]), np.array(seconds["replay"]), config.seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    return {
        "num_tokens": world.traces.num_positions,
        "num_envs": config.num_envs,
        "steps_per_second": bare,
        "ppo_envs": config.ppo_envs,
        "ppo_steps_per_second": steps * config.repeats / sum(seconds["replay"]),
        "ppo_speed_ratio": ratio.value,
        "ppo_speed_ratio_ci_low": ratio.low,
        "ppo_speed_ratio_ci_high": ratio.high,
        "loading_seconds": loading,
        "peak_memory_gib": peak,
        "seed": config.seed,
    }


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and print what it found."""
    parser = cli.make_parser(ReplayBenchConfig, "bench replay", ReplayBenchConfig.__doc__ or "")
    config = cli.build(ReplayBenchConfig, parser, cli.parse(parser, argv))
    cli.check_file("json", config.json)
    row = bench_replay(config)
    print(f"{row['num_tokens']} made-up tokens, written and loaded in {row['loading_seconds']:.1f} s; single and vectorised steps agree")
    print(f"bare steps        {row['steps_per_second'] / 1e6:7.2f} million per second ({config.num_envs} texts side by side, one thread)")
    print(
        f"PPO               {row['ppo_steps_per_second']:7.0f} steps per second ({config.ppo_envs} texts, batches of {config.batch_size})"
    )
    interval = f"95 % interval {row['ppo_speed_ratio_ci_low']:.2f} to {row['ppo_speed_ratio_ci_high']:.2f}, {config.repeats} pairs"
    print(f"against idle env  {row['ppo_speed_ratio']:7.2f} of PPO's speed on an environment that does nothing ({interval})")
    print(f"peak memory       {row['peak_memory_gib']:7.2f} GiB, all of Python included")
    if config.json is not None:
        from dispatch_rl.runs import write_json

        write_json(config.json, [row])
