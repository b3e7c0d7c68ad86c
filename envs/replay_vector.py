"""Thousands of replayed texts side by side: Gymnasium's vector environment, and the thin form that Stable-Baselines3 asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from dispatch_rl.config import RewardConfig, TrainConfig
from dispatch_rl.envs.replay import observation_space, prepare
from dispatch_rl.envs.tally import Tally
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Split
from dispatch_rl.replay.episodes import Episodes
from dispatch_rl.replay.world import Ints, ReplayWorld

Observations = NDArray[np.float32]


class ReplayVectorEnv(gym.vector.VectorEnv[Observations, Ints, NDArray[Any]]):
    """Vectorised :class:`~dispatch_rl.envs.replay.ReplayDecodingEnv`. A text that ends is followed by the next in the same step.

    Every text is decoded once before any is decoded again, in an order that ``seed`` decides. The last observation of a text that ended
    is in ``info["final_obs"]``.

    Args:
        num_envs: Episodes side by side.
        config: As for :class:`~dispatch_rl.envs.replay.ReplayDecodingEnv`.
        world: Traces that are loaded already.
        part: Which part of the prompts is replayed.
        reward: What is rewarded; None takes it from the configuration.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 256,
        config: TrainConfig | str | Path | None = None,
        *,
        world: ReplayWorld | None = None,
        part: Split = "train",
        reward: RewardConfig | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.world, self.reward = prepare(config, world, part, reward)
        self.single_action_space = gym.spaces.Discrete(len(self.world.arms))
        self.single_observation_space = observation_space(self.world.features)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.episodes = Episodes(self.world, num_envs)
        self.tally = Tally([arm.name for arm in self.world.arms])
        self._order: Ints = self.world.texts[:0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, dict[str, Any]]:
        if seed is not None and not isinstance(seed, int | np.integer):
            raise UserError(f"seed: {seed!r} is not one integer; it seeds the order of the texts, which all environments share")
        if options and "prompt" in options:
            raise UserError("options['prompt']: the texts of many environments are shuffled; ReplayDecodingEnv replays one that is named")
        super().reset(seed=None if seed is None else int(seed))
        self._order = self.world.texts[:0]
        self.episodes.restart(np.arange(self.num_envs), self._next_texts(self.num_envs))
        return self.episodes.observations(), {}

    def step(self, actions: Ints) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        if actions.min() < 0 or actions.max() >= len(self.world.arms):
            raise gym.error.InvalidAction(f"{actions.min()} or {actions.max()} is not in 0 ... {len(self.world.arms) - 1}")
        step = self.episodes.step(actions)
        self.tally.add(actions, step)
        observations = self.episodes.observations()
        info: dict[str, Any] = {}
        if step.finished.any():
            ended = np.flatnonzero(step.finished)
            last = np.full(self.num_envs, None, dtype=object)
            last[ended] = list(observations[ended])
            info = {"final_obs": last, "_final_obs": step.finished.copy()}
            self.episodes.restart(ended, self._next_texts(len(ended)))
            observations[ended] = self.episodes.observations(ended)
        return observations, self.reward.batch(step), step.finished, np.zeros(self.num_envs, dtype=bool), info

    def _next_texts(self, count: int) -> Ints:
        while len(self._order) < count:
            self._order = np.concatenate([self._order, self.np_random.permutation(self.world.texts)])
        chosen, self._order = self._order[:count], self._order[count:]
        return chosen

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything that the next steps depend on besides the random numbers."""
        return {"order": self._order, **self.episodes.state(), **self.tally.state()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`."""
        self._order = state["order"]
        self.episodes.restore(state)
        self.tally.restore(state)


class ReplayVecEnv(VecEnv):
    """A :class:`ReplayVectorEnv` as Stable-Baselines3 wants it; it adds the sums over each episode and nothing else."""

    def __init__(self, env: ReplayVectorEnv) -> None:
        self.env = env
        self.tally = env.tally
        self._actions: Ints = np.zeros(env.num_envs, dtype=np.int64)
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._nothing: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Observations:
        observations, _ = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._returns[:] = 0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: Ints) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Observations, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        observations, rewards, finished, _, info = self.env.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        infos = self._nothing.copy()
        for i in np.flatnonzero(finished):
            sums = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": 0.0}
            infos[i] = {"terminal_observation": info["final_obs"][i], "episode": sums}
        self._returns[finished] = 0
        self._lengths[finished] = 0
        return observations, rewards.astype(np.float32), finished, infos

    def state(self) -> dict[str, NDArray[Any]]:
        """Return everything that the next steps depend on besides the random numbers."""
        return {**self.env.state(), "returns": self._returns, "lengths": self._lengths}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from a :meth:`state`."""
        self.env.restore(state)
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * len(self._chosen(indices))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
