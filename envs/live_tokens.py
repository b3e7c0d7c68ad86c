"""Real decoding, dispatched token by token."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dispatch_rl.config import DecodingConfig, RewardConfig
from dispatch_rl.decoding.arms import LOOKUP, Arm
from dispatch_rl.decoding.draft_features import DraftTracker
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.envs.live import LiveDecodingEnv, Observation
from dispatch_rl.envs.replay import observation_space
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Split

LONGEST_DRAFT = 24
"""Decisions that a round may take before it is verified, unless another number is given."""


class LiveTokenEnv(LiveDecodingEnv):
    """Adaptive speculative decoding, one draft token a step.

    Description:
        An episode is one prompt. Before every draft token the policy reads features of the text and of the draft so far, and says which
        student drafts the next token, or that the target is to verify. Whoever takes over reads what it has not read, in the same forward
        pass. The text is the same whatever the policy does (greedy and coupled sampling); only the time differs.

    Action space:
        ``Discrete(students + 2)``: the students in the order of the family, prompt lookup, and last, verify;
        ``env.unwrapped.action_names`` lists them.

        A round takes at most ``longest_draft`` decisions to draft, fewer where the text must end; when they are used up it is verified in
        the same step, and where there is no room for a draft every action verifies. A decision that finds nothing to draft counts, but
        does nothing: prompt lookup without a match, a student whose context is full, a student behind an end-of-sequence token.
        (It does not verify: whether it finds something may depend on tokens that replay does not know.)

    Observation space:
        ``Box`` of float32: first the features of :class:`~dispatch_rl.envs.live.LiveDecodingEnv` as they were before the round, then those
        of :func:`dispatch_rl.decoding.draft_features.draft_feature_table`. For students small, medium and large:

        ===== ================== ====== ==== ==== =================================================================
        index name               unit   low  high meaning
        ===== ================== ====== ==== ==== =================================================================
        0-12                                      before the round
        13    draft_length       tokens 0    255  tokens of the draft
        14    draft_left         1      0    255  decisions to draft on that may follow before the draft is verified
        15    draft_passed       1      0    1    1 if the last decision found nothing to draft
        16    draft_entropy      nats   0    12   own entropy of whoever drafted the last token; 0 without a student
        17    draft_entropy_sum  nats   0    64   sum of these entropies over the draft
        18    draft_margin       nats   0    20   how clear the choice of the last token was; 20 without a student
        19    draft_least_margin nats   0    20   the least of these margins in the draft; 20 without any
        20-22 drafted_by_small   1      0    1    1 if 'small' drafted the last token; the same for the others
        23    drafted_by_lookup  1      0    1    the same for prompt lookup
        24-26 unread_small       tokens 0    256  tokens before the last one, drafted ones too, that it has not read; also the others
        ===== ================== ====== ==== ==== =================================================================

        A margin is as in :attr:`dispatch_rl.decoding.arms.Arm.min_margin`.

    Reward:
        ``-latency / reference`` of the step, and in the step that verifies also the tokens of the round: over a text, its tokens minus
        its latency in units of the target alone, as in the other environments. What happens between two steps is not counted.
        Clip and acceptance term as there.

    Starting state, episode end:
        As :class:`~dispatch_rl.envs.live.LiveDecodingEnv`.

    Info:
        ``round``: the :class:`~dispatch_rl.decoding.rounds.Round` if this step verified, else None; ``prompt``; ``reward/latency`` and
        ``reward/acceptance``: the terms of the reward before clipping.

    Args:
        config: The configuration, or the path of a YAML file; None means the pocket family. Its arms play no part.
        reward: What is rewarded; None takes it from the file, or the defaults.
        family: Models that are loaded already.
        split: Which prompts are drawn.
        longest_draft: Decisions that a round may take before it is verified.
        render_mode: ``ansi`` (one line a round) or ``rgb_array`` (a strip for videos).

    Version history:
        v0: first version.

    Raises:
        UserError: ``longest_draft`` is not in 1 to 255.
    """

    def __init__(
        self,
        config: DecodingConfig | str | Path | None = None,
        *,
        reward: RewardConfig | None = None,
        family: Family | None = None,
        split: Split = "train",
        longest_draft: int = LONGEST_DRAFT,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(config, reward=reward, family=family, split=split, render_mode=render_mode)
        self.longest_draft = checked_longest(longest_draft, 255)
        arms = [Arm(name, self.longest_draft) for name in self.family.students]
        capture_graphs(self.family, arms, [self.config.sampling], clarity=True)
        self.tracker = DraftTracker(tuple(self.family.students))
        self.action_names = action_names(tuple(self.family.students))
        self.features = (*self.features, *self.tracker.table)
        self.action_space = spaces.Discrete(len(self.action_names))
        self.observation_space = observation_space(self.features)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        session = self.session
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"{action!r} is not in 0 ... {len(self.action_names) - 1}")
        if session.finished:
            raise gym.error.ResetNeeded("the text has ended; call reset() before step()")
        before_ms = session.draft_ms
        verifies = int(action) == len(self.action_names) - 1
        if not verifies and self.tracker.left > 0:
            self._draft(self.action_names[int(action)])
        record = None
        if verifies or self.tracker.left == 0:
            record = session.verify()
            latency_ms = record.latency_ms - before_ms
            self._before_round()
        else:
            latency_ms = session.draft_ms - before_ms
            session.pause()
        reward, fast, accepted = self.reward.of_step(latency_ms, record)
        info = {"round": record, "prompt": self._prompt, "reward/latency": fast, "reward/acceptance": accepted}
        return self._observed(), reward, session.finished, False, info

    def _draft(self, name: str) -> None:
        """Let somebody draft the next token, if there is one."""
        token = None if self._ended and name != LOOKUP else self.session.draft(name, clarity=True)
        if token is None:
            self.tracker.skip()
            return
        self.tracker.add(name, token.clarity)
        self._ended |= token.id in self.family.eos_token_ids

    def _begun(self) -> Observation:
        self._before_round()
        return self._observed()

    def _before_round(self) -> None:
        self._text_features = self.session.observation()
        self._ended = False
        self.tracker.start(max(0, min(self.longest_draft, self.session.room)))

    def _observed(self) -> Observation:
        length = len(self.session.tokens) + len(self.session.drafted)
        unread = [length - 1 - read for read in self.session.read()]
        return np.concatenate([self._text_features, self.tracker.observation(unread)])


def action_names(students: tuple[str, ...]) -> tuple[str, ...]:
    """Return the actions: who drafts the next token, or verify."""
    return (*students, LOOKUP, "verify")


def checked_longest(longest_draft: int, most: int) -> int:
    """Return ``longest_draft``.

    Raises:
        UserError: It is not in 1 to ``most``.
    """
    if not 1 <= longest_draft <= most:
        raise UserError(f"longest_draft: {longest_draft} is not in 1 ... {most}")
    return longest_draft
