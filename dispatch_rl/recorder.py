"""Writes metrics, checkpoints and the best policy while a learner of Stable-Baselines3 learns."""

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from time import monotonic
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from dispatch_rl import checkpoints
from dispatch_rl.envs.tally import Tally
from dispatch_rl.learning import Learner, action_entropy, extract_policy
from dispatch_rl.selection import Selection
from dispatch_rl.tracking.base import Tracking

_ROW_ROUNDS = 16_384
"""Rounds between two rows of the metrics, if the learner's own rollouts are shorter."""


class Recorder(BaseCallback):
    """A callback of Stable-Baselines3.

    Args:
        selection: Where policies and metrics go.
        tally: Sums over the rounds that are learned from; in replay the environment keeps them itself.
        live: Whether the rounds come one by one in ``infos``.
        interval: Rounds between two validations.
        progress: Told the number of rounds done and a line about them.
    """

    def __init__(
        self,
        selection: Selection,
        tally: Tally,
        live: bool,
        interval: int,
        progress: Callable[[int, str], None],
    ) -> None:
        super().__init__()
        self.selection = selection
        self.run = selection.run
        self.tracking = selection.tracking
        self.tally = tally
        self.live = live
        self.interval = interval
        self.progress = progress
        self.validated_at = 0
        self._rewards = (0.0, 0)
        self._seconds_before = 0.0
        self._began = monotonic()
        self._since_row = (0, 0.0)

    def attach(self, model: Learner) -> None:
        """Record ``model``, and what it says itself."""
        self.model = model
        # DQN's rollouts are one round of every text; a row for each would be too much.
        self._row_interval = 0 if isinstance(model, PPO) else min(self.interval, _ROW_ROUNDS)
        model.set_logger(Logger(None, [_Forwarding(self.tracking, self._row_interval)]))

    def resume(self, folder: Path) -> None:
        """Go on from the state in ``folder``: forget the metrics written after it."""
        extra = checkpoints.load(self.model, folder)  # type: ignore[arg-type]
        self.selection.best, self.validated_at = extra["best"], extra["validated_at"]
        self._rewards = (extra["rewards"], extra["rewarded"])
        self._seconds_before = extra["seconds"]
        self._since_row = (self.model.num_timesteps, self._seconds_before)
        self.tracking.rewind(self.model.num_timesteps)

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        self._rewards = (self._rewards[0] + float(rewards.sum()), self._rewards[1] + len(rewards))
        if self.live:
            self.tally.add_round(self.locals["infos"][0]["round"])
            if self.num_timesteps % 64 == 0:
                self._show()
        return True

    def _on_rollout_start(self) -> None:
        """Between two updates: the only moment at which the whole state is at rest."""
        if self.num_timesteps - self.validated_at >= self.interval:
            self.validate_now()

    def _on_rollout_end(self) -> None:
        steps_before, seconds_before = self._since_row
        if self.num_timesteps - steps_before < self._row_interval:
            return
        self._show()
        seconds = self._seconds()
        rounds = self.tally.take()
        shares = rounds.pop("arm_shares")
        row = {"time/seconds": round(seconds, 3), **{f"decoding/{key}": value for key, value in rounds.items()}}
        row |= {f"arms/{arm}": share for arm, share in shares.items()}
        row["decoding/reward_per_round"] = self._rewards[0] / max(self._rewards[1], 1)
        row["time/steps_per_second"] = round((self.num_timesteps - steps_before) / max(seconds - seconds_before, 1e-9))
        if isinstance(self.model, PPO):
            row["decoding/policy_entropy_nats"] = action_entropy(self.model)
        self._since_row = (self.num_timesteps, seconds)
        self._rewards = (0.0, 0)
        self.tracking.log(self.num_timesteps, row)

    def _show(self) -> None:
        self.progress(self.num_timesteps, f"{self.tally.latency_ms_per_token:.3f} ms per token")

    def _seconds(self) -> float:
        return self._seconds_before + monotonic() - self._began

    def validate_now(self) -> float:
        """Validate the policy as it is, keep it, as the best if no other was faster, and keep the state of the training."""
        self.validated_at = self.num_timesteps
        policy = extract_policy(self.model)  # type: ignore[arg-type]
        latency_ms = self.selection.consider(self.num_timesteps, policy)
        rewards, rewarded = self._rewards
        extra = {
            "best": self.selection.best,
            "validated_at": self.validated_at,
            "seconds": self._seconds(),
            "rewards": rewards,
            "rewarded": rewarded,
        }
        checkpoints.save(self.model, extra, self.run.state)  # type: ignore[arg-type]
        return latency_ms


class _Forwarding(KVWriter):
    """Gives on what the learner logs about itself: losses, returns of episodes."""

    def __init__(self, tracking: Tracking, interval: int) -> None:
        self._tracking = tracking
        self._interval = interval
        self._last = 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        if step - self._last < self._interval:
            return
        self._last = step
        # Its clock counts from the last resumption only; ours is in the recorder's rows.
        mine = {key: float(value) for key, value in key_values.items() if isinstance(value, Real) and not key.startswith("time/")}
        self._tracking.log(step, mine)

    def close(self) -> None:
        pass
