"""Real decoding as an environment: real models, real caches, a real clock."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dispatch_rl.config import DecodingConfig, RewardConfig, TrainConfig
from dispatch_rl.decoding.arms import ArmTable
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.features import feature_table
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.decoding.loop import target_latency_ms
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.envs.rendering import ansi_round, strip
from dispatch_rl.envs.replay import observation_space
from dispatch_rl.envs.reward import Reward
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Prompt, Split, prompts

_MOST_EMPTY = 100
"""Texts without anything to decide that are passed over, one after the other."""

Observation = NDArray[np.float32]


class LiveDecodingEnv(gym.Env[Observation, np.int64]):
    """Adaptive speculative decoding, one round a step.

    Description:
        An episode is one prompt. Before each round the policy reads features of the text so far and chooses an arm: a student and a
        draft length, prompt lookup, or the target alone. The student drafts, the target verifies, and what stands is emitted. The
        text is the same whatever the policy does (greedy and coupled sampling); only the time differs.

    Action space:
        ``Discrete(len(arms))``; action ``i`` is ``env.unwrapped.arms[i]``.

    Observation space:
        ``Box`` of float32 ``[features]``, finite, each feature within the bounds of the table
        :func:`dispatch_rl.decoding.features.feature_table`. For students small, medium and large:

        ===== ================== ====== ==== ==== ===========================================================
        index name               unit   low  high meaning
        ===== ================== ====== ==== ==== ===========================================================
        0     entropy            nats   0    12   target's entropy where it chose the previous token
        1     entropy_mean       nats   0    12   moving average of that entropy over the tokens (decay 0.8)
        2     top1_probability   1      0    1    target's largest probability at the previous token
        3     margin             nats   0    20   difference of the target's two largest logits there
        4     accepted_fraction  1      0    1    accepted / drafted in the last round
        5     lookup_match       tokens 0    4    longest end of the text that stood there before
        6     position           1      0    1    share of the longest possible text that is written
        7     acceptance_small   1      0    1    moving share of accepted draft tokens of the student
        8     acceptance_medium  1      0    1    the same
        9     acceptance_large   1      0    1    the same
        10    lag_small          tokens 0    256  committed tokens that the student's cache is behind
        11    lag_medium         tokens 0    256  the same
        12    lag_large          tokens 0    256  the same
        ===== ================== ====== ==== ==== ===========================================================

    Reward:
        ``(tokens * reference - latency) / reference``, plus ``acceptance_weight * accepted / drafted`` (weight 0 by default), clipped;
        see :class:`dispatch_rl.envs.reward.Reward`. The reference is the latency of the target alone (ms per token).

    Starting state:
        The prompt is read and the first token emitted. ``reset(options={"prompt": "text"})`` decodes a text of yours, else prompts
        come from the configuration in an order that ``seed`` decides.

    Episode end:
        Terminated when the text ends: end of sequence, ``max_new_tokens`` or the context limit. Never truncated.

    Info:
        ``round``: the :class:`~dispatch_rl.decoding.rounds.Round` (None at reset); ``prompt``: the
        :class:`~dispatch_rl.prompts.Prompt`; ``reward/latency`` and ``reward/acceptance``: the terms of the reward before clipping.

    Args:
        config: The configuration, or the path of a YAML file; None means the pocket family.
        reward: What is rewarded; None takes it from the file, or the defaults.
        family: Models that are loaded already. Environments that share them take turns, at the price of reading texts again.
        split: Which prompts are drawn.
        render_mode: ``ansi`` (one line a round) or ``rgb_array`` (a strip for videos).

    Version history:
        v0: first version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self,
        config: DecodingConfig | str | Path | None = None,
        *,
        reward: RewardConfig | None = None,
        family: Family | None = None,
        split: Split = "train",
        render_mode: str | None = None,
    ) -> None:
        config = _configuration(config)
        if reward is None:
            reward = config.reward if isinstance(config, TrainConfig) else RewardConfig()
        self.config = config
        self.family = load_family(config.family) if family is None else family
        self.arms = ArmTable(config.arm_list())
        self.arms.check_students(tuple(self.family.students))
        self.features = feature_table(tuple(self.family.students))
        self.split: Split = split
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(self.arms))
        self.observation_space = observation_space(self.features)
        capture_graphs(self.family, self.arms, [config.sampling])
        reference = reward.reference_ms_per_token or target_latency_ms(self.family)
        self.reward = Reward(reference, reward.acceptance_weight, reward.clip)
        self._prompts: Iterator[Prompt] | None = None
        self._prompt: Prompt | None = None
        self._session: DecodingSession | None = None

    @property
    def session(self) -> DecodingSession:
        """The text being decoded."""
        if self._session is None:
            raise gym.error.ResetNeeded("call reset() before step() and render()")
        return self._session

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._prompts is None:
            stream_seed = int(self.np_random.integers(2**31))
            self._prompts = prompts(self.config.prompts, self.family, self.split, stream_seed)
        if options and "prompt" in options:
            if not isinstance(options["prompt"], str):
                raise UserError(f"options['prompt']: {options['prompt']!r} is no text")
            self._begin(Prompt("option", tuple(self.family.encode(options["prompt"])), 0))
            if self.session.finished:
                raise UserError("options['prompt']: the text ends with its first token, which leaves nothing to decide")
        else:
            for prompt in islice(self._prompts, _MOST_EMPTY):
                self._begin(prompt)
                if not self.session.finished:
                    break
            else:
                raise UserError(f"prompts.source: {_MOST_EMPTY} texts, one after the other, end with their first token; nothing to decide")
        return self._begun(), self._info(None)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"{action!r} is not in 0 ... {len(self.arms) - 1}")
        if self.session.finished:
            raise gym.error.ResetNeeded("the text has ended; call reset() before step()")
        record = self.session.step(self.arms[int(action)])
        return self.session.observation(), self.reward(record), self.session.finished, False, self._info(record)

    def render(self) -> Any:
        """Return the decoded text as coloured lines (``ansi``) or as a picture ``[96, 512, 3]`` (``rgb_array``)."""
        students = tuple(self.family.students)
        if self.render_mode == "ansi":
            return "\n".join(ansi_round(record, self.family.decode, students) for record in self.session.rounds)
        if self.render_mode == "rgb_array":
            return strip(self.session.rounds, students)
        return None

    def _begun(self) -> Observation:
        """Return the first observation of a text."""
        return self.session.observation()

    def _begin(self, prompt: Prompt) -> None:
        self._prompt = prompt
        sampling = prompt.sampling(self.config.sampling)
        self._session = DecodingSession(self.family, prompt.tokens, sampling, self.config.prompts.max_new_tokens)

    def _info(self, record: Any) -> dict[str, Any]:
        return {
            "round": record,
            "prompt": self._prompt,
            "reward/latency": self.reward.latency_term(record) if record else 0.0,
            "reward/acceptance": self.reward.acceptance_term(record) if record else 0.0,
        }


def _configuration(config: DecodingConfig | str | Path | None) -> DecodingConfig:
    if isinstance(config, (str, Path)):
        from dispatch_rl.cli import read_config

        return read_config(TrainConfig, Path(config))
    return config or DecodingConfig()
