"""Replay as an environment: recorded texts, measured latencies, no model in memory."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dispatch_rl.config import ProfilingConfig, PromptConfig, RecordingConfig, RewardConfig, TrainConfig
from dispatch_rl.decoding.features import Feature
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.envs.rendering import ansi_round, strip
from dispatch_rl.envs.reward import Reward
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Split
from dispatch_rl.replay.episodes import Episodes
from dispatch_rl.replay.running import best_fixed_latency_ms
from dispatch_rl.replay.sources import open_replay
from dispatch_rl.replay.world import ReplayWorld

Observation = NDArray[np.float32]

SMALL = TrainConfig(
    prompts=PromptConfig(max_new_tokens=64),
    recording=RecordingConfig(train_prompts=32, validation_prompts=32, test_prompts=32, shard_size=32),
    profiling=ProfilingConfig(rounds=600, longest_context=256),
)
"""What an environment without a configuration replays: enough of the pocket family to play with, made in well under a minute."""


class ReplayDecodingEnv(gym.Env[Observation, np.int64]):
    """Speculative decoding replayed from a recording, one round a step, deterministic.

    Description:
        What :class:`~dispatch_rl.envs.live.LiveDecodingEnv` does with models and a clock, this environment looks up: which draft
        tokens of every student stand at every position was recorded, how long forward passes take was measured. Arms, features,
        :class:`~dispatch_rl.decoding.rounds.Round` and reward are the same, and so are the accepted counts and the text, exactly.

    Action space, observation space, reward:
        As the live environment. Features whose columns a recording lacks are left out, and then those of
        :mod:`dispatch_rl.replay.hindsight` come behind the others; ``env.unwrapped.features`` lists those there are.
        The reward's reference is, unless it is given, the latency of the best fixed arm on these texts, so that zero means "as fast as
        the best fixed arm".

    Starting state:
        After the first token. Texts come in an order that ``seed`` decides; ``reset(options={"prompt": i})`` replays text ``i``.

    Episode end:
        Terminated when the recorded text ends. Never truncated.

    Info:
        ``round``: the :class:`~dispatch_rl.decoding.rounds.Round` (None at reset); ``prompt``: the number of the text;
        ``reward/latency`` and ``reward/acceptance``: the terms of the reward before clipping.

    Args:
        config: The configuration, or the path of a YAML file; None means a small recording of the pocket family, made when first needed.
        world: Traces that are loaded already.
        part: Which part of the prompts is replayed.
        reward: What is rewarded; None takes it from the configuration.
        render_mode: ``ansi`` (one line a round) or ``rgb_array`` (a strip for videos).

    Version history:
        v0: first version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self,
        config: TrainConfig | str | Path | None = None,
        *,
        world: ReplayWorld | None = None,
        part: Split = "train",
        reward: RewardConfig | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.world, self.reward = prepare(config, world, part, reward)
        self.arms = self.world.arms
        self.features = self.world.features
        self.action_space = spaces.Discrete(len(self.arms))
        self.observation_space = observation_space(self.features)
        self.render_mode = render_mode
        self.rounds: list[Round] = []
        self._episode: Episodes | None = None
        self._finished = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        text = int(self.np_random.choice(self.world.texts))
        if options and "prompt" in options:
            text = options["prompt"]
            if isinstance(text, bool) or not isinstance(text, int | np.integer) or text not in self.world.texts:
                raise UserError(f"options['prompt']: {text!r} is no text with anything to decide; world.texts has {len(self.world.texts)}")
        if self._episode is None:
            self._episode = Episodes(self.world, 1)
        self._episode.restart(np.array([0]), np.array([text]))
        self.rounds, self._finished = [], False
        return self._begun(), self._info(None)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._episode is None or self._finished:
            raise gym.error.ResetNeeded("call reset() before step()")
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"{action!r} is not in 0 ... {len(self.arms) - 1}")
        record = self._episode.record(0, int(action))
        self.rounds.append(record)
        step = self._episode.step(np.array([action]))
        self._finished = bool(step.finished[0])
        return self._episode.observations()[0], self.reward(record), self._finished, False, self._info(record)

    def render(self) -> Any:
        """Return the decoded text as coloured lines (``ansi``, tokens as ids) or as a picture ``[96, 512, 3]`` (``rgb_array``)."""
        students = self.world.traces.students
        if self.render_mode == "ansi":
            return "\n".join(ansi_round(record, lambda tokens: " ".join(map(str, tokens)), students) for record in self.rounds)
        if self.render_mode == "rgb_array":
            return strip(self.rounds, students)
        return None

    def _begun(self) -> Observation:
        """Return the first observation of a text."""
        assert self._episode is not None
        first: Observation = self._episode.observations()[0]
        return first

    def _info(self, record: Round | None) -> dict[str, Any]:
        assert self._episode is not None
        return {
            "round": record,
            "prompt": int(self._episode.texts[0]),
            "reward/latency": self.reward.latency_term(record) if record else 0.0,
            "reward/acceptance": self.reward.acceptance_term(record) if record else 0.0,
        }


def prepare(
    config: TrainConfig | str | Path | None, world: ReplayWorld | None, part: Split, reward: RewardConfig | None
) -> tuple[ReplayWorld, Reward]:
    """Return what is replayed and how it is paid; traces and latencies are made if they are not there."""
    if isinstance(config, (str, Path)):
        from dispatch_rl.cli import read_config

        config = read_config(TrainConfig, Path(config))
    config = config or SMALL
    world = world or open_replay(config).world(part)
    reward = reward or config.reward
    reference = reward.reference_ms_per_token or best_fixed_latency_ms(world)
    return world, Reward(reference, reward.acceptance_weight, reward.clip)


def observation_space(features: tuple[Feature, ...]) -> spaces.Space[Observation]:
    """Return the box that the features' bounds make."""
    low, high = (np.array([getattr(f, end) for f in features], dtype=np.float32) for end in ("low", "high"))
    box: Any = spaces.Box(low, high)
    return box  # type: ignore[no-any-return]
