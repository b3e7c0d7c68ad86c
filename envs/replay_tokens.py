"""Replay, dispatched token by token."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dispatch_rl.config import RewardConfig, TrainConfig
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.draft_features import DraftTracker
from dispatch_rl.envs.live_tokens import LONGEST_DRAFT, action_names, checked_longest
from dispatch_rl.envs.replay import SMALL, Observation, ReplayDecodingEnv, observation_space
from dispatch_rl.prompts import Split
from dispatch_rl.replay.token_drafts import TokenDrafts
from dispatch_rl.replay.world import ReplayWorld


class ReplayTokenEnv(ReplayDecodingEnv):
    """Speculative decoding replayed from a recording, one draft token a step, deterministic.

    Description:
        What :class:`~dispatch_rl.envs.live_tokens.LiveTokenEnv` does with models and a clock, this environment looks up. For any
        sequence of actions, rounds end in the same steps, and the accepted counts and the text are those of live decoding, exactly; so
        are the observations while a draft is on the path (none of its tokens is wrong) or has one drafter.

        Where somebody else takes over behind a wrong token, nothing that it drafts can stand, but its choices there were not recorded.
        A student's margins and entropies are assumed to be those behind its own wrong token if it is wrong at the same position, else
        those on the path. That the text ends there, or that prompt lookup has a match behind a student's wrong token, is assumed not to
        happen, so that such a draft may be counted longer or shorter than live (and with it the accepted share before the next round).

    Action space, observation space, reward:
        As the live environment. Features whose columns a recording lacks are left out: those of margins need ``margin_S`` and
        ``beyond_margin_S`` of every student S, those of entropies ``entropy_S`` and ``beyond_entropy_S``. Prompt lookup needs ``prompt``
        and ``path``; without them it finds nothing. The reward's reference is that of
        :class:`~dispatch_rl.envs.replay.ReplayDecodingEnv`: unless it is given, zero means "as fast as the best fixed arm".

    Starting state, episode end:
        As :class:`~dispatch_rl.envs.replay.ReplayDecodingEnv`.

    Info:
        As the live environment; ``prompt`` is the number of the text.

    Args:
        config: The configuration, or the path of a YAML file; None means a small recording of the pocket family, made when first needed.
        world: Traces that are loaded already.
        part: Which part of the prompts is replayed.
        reward: What is rewarded; None takes it from the configuration.
        longest_draft: Decisions that a round may take before it is verified; None means 24, or as many as the recording knows of.
        render_mode: ``ansi`` (one line a round) or ``rgb_array`` (a strip for videos).

    Version history:
        v0: first version.

    Raises:
        UserError: ``longest_draft`` is below 1 or above what the recording knows of.
    """

    def __init__(
        self,
        config: TrainConfig | str | Path | None = None,
        *,
        world: ReplayWorld | None = None,
        part: Split = "train",
        reward: RewardConfig | None = None,
        longest_draft: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(watching(config) if world is None else config, world=world, part=part, reward=reward, render_mode=render_mode)
        traces = self.world.traces
        known = traces.max_draft_length
        self.longest_draft = min(LONGEST_DRAFT, known) if longest_draft is None else checked_longest(longest_draft, known)
        self.drafts = TokenDrafts(self.world, self.longest_draft)
        self.tracker = DraftTracker(traces.students, self.drafts.missing)
        self.action_names = action_names(traces.students)
        self.features = (*self.features, *self.tracker.table)
        self.action_space = spaces.Discrete(len(self.action_names))
        self.observation_space = observation_space(self.features)
        self._episode = self.drafts.episode

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._finished:
            raise gym.error.ResetNeeded("call reset() before step()")
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"{action!r} is not in 0 ... {len(self.action_names) - 1}")
        verifies, latency_ms, record = int(action) == len(self.action_names) - 1, 0.0, None
        if not verifies and self.tracker.left > 0:
            latency_ms += self._draft(int(action))
        if verifies or self.tracker.left == 0:
            record, self._finished = self.drafts.verify()
            self.rounds.append(record)
            latency_ms += record.verify_ms + record.overhead_ms
            self._before_round()
        reward, fast, accepted = self.reward.of_step(latency_ms, record)
        info = {"round": record, "prompt": int(self.drafts.episode.texts[0]), "reward/latency": fast, "reward/acceptance": accepted}
        return self._observed(), reward, self._finished, False, info

    def _draft(self, drafter: int) -> float:
        """Let somebody draft the next token, if there is one, and return the latency (ms)."""
        drafted, clarity, latency_ms = self.drafts.draft(drafter)
        if drafted:
            self.tracker.add(self.drafts.drafters[drafter], clarity)
        else:
            self.tracker.skip()
        return latency_ms

    def _begun(self) -> Observation:
        self.drafts.restart(int(self.drafts.episode.texts[0]))
        self._before_round()
        return self._observed()

    def _before_round(self) -> None:
        self._text_features = self.drafts.episode.observations()[0]
        self.tracker.start(max(0, min(self.longest_draft, self.drafts.room)))

    def _observed(self) -> Observation:
        return np.concatenate([self._text_features, self.tracker.observation(self.drafts.unread())])


def watching(config: TrainConfig | str | Path | None) -> TrainConfig:
    """Return ``config`` such that what is recorded tells how clear the students' choices are."""
    if isinstance(config, str | Path):
        from dispatch_rl.cli import read_config

        config = read_config(TrainConfig, Path(config))
    config = config or SMALL
    if config.watches or config.replay.traces is not None:
        return config
    # It never hesitates, so that it changes nothing but what is recorded.
    arms = config.arm_list()
    watcher = Arm(next(iter(config.family.students)), 1, min_margin=0.0)
    return replace(config, arms=[*arms, watcher])
