"""Writes metrics, checkpoints and the best policy while a learner learns."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from dispatch_rl import checkpoints
from dispatch_rl.envs.tally import Tally
from dispatch_rl.learning import action_entropy, extract_policy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.runs import RunFolder


class Recorder(BaseCallback):
    """A callback of Stable-Baselines3.

    Args:
        run: Where everything goes.
        tally: Sums over the rounds that are learned from; in replay the environment keeps them itself.
        live: Whether the rounds come one by one in ``infos``.
        validate: Returns the latency (ms per token) of a policy on validation prompts.
        interval: Rounds between two validations.
        progress: Told the number of rounds done and a line about them.
    """

    def __init__(
        self,
        run: RunFolder,
        tally: Tally,
        live: bool,
        validate: Callable[[NetworkPolicy], float],
        interval: int,
        progress: Callable[[int, str], None],
    ) -> None:
        super().__init__()
        self.run = run
        self.tally = tally
        self.live = live
        self.validate = validate
        self.interval = interval
        self.progress = progress
        self.best_latency_ms = float("inf")
        self.validated_at = 0
        self._seconds_before = 0.0
        self._began = monotonic()
        self._since_row = (0, 0.0)

    def resume(self, folder: Path) -> None:
        """Go on from the state in ``folder``: forget the metrics written after it."""
        extra = checkpoints.load(self.model, folder)  # type: ignore[arg-type]
        self.best_latency_ms, self.validated_at = extra["best_latency_ms"], extra["validated_at"]
        self._seconds_before = extra["seconds"]
        self._since_row = (self.model.num_timesteps, self._seconds_before)
        self.run.truncate_metrics(self.model.num_timesteps)

    def _on_step(self) -> bool:
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
        # DQN's rollouts are one round of every text; a row for each would be too much.
        if not isinstance(self.model, PPO) and self.num_timesteps - self._since_row[0] < min(self.interval, 16_384):
            return
        self._show()
        seconds = self._seconds()
        steps_before, seconds_before = self._since_row
        row = {"step": self.num_timesteps, "seconds": round(seconds, 3), **self.tally.take()}
        row["steps_per_second"] = round((self.num_timesteps - steps_before) / max(seconds - seconds_before, 1e-9))
        self._since_row = (self.num_timesteps, seconds)
        if isinstance(self.model, PPO):
            row["policy_entropy_nats"] = action_entropy(self.model)
        for key in ("latency_ms_per_token", "draft_acceptance_rate", "policy_entropy_nats"):
            if key in row:
                self.logger.record(f"decoding/{key}", row[key])
        for arm, share in row["arm_shares"].items():
            self.logger.record(f"arms/{arm}", share)
        self.run.append_metrics([row])

    def _show(self) -> None:
        self.progress(self.num_timesteps, f"{self.tally.latency_ms_per_token:.3f} ms per token")

    def _seconds(self) -> float:
        return self._seconds_before + monotonic() - self._began

    def validate_now(self) -> float:
        """Validate the policy as it is, keep it, as the best if no other was faster, and keep the state of the training."""
        self.validated_at = self.num_timesteps
        policy = extract_policy(self.model)  # type: ignore[arg-type]
        latency_ms = self.validate(policy)
        self.logger.record("validation/latency_ms_per_token", latency_ms)
        self._save(policy, self.run.checkpoint(self.num_timesteps))
        if latency_ms < self.best_latency_ms:
            self.best_latency_ms = latency_ms
            self._save(policy, self.run.best_policy)
        self.run.append_metrics([{"step": self.num_timesteps, "validation_latency_ms_per_token": latency_ms}])
        extra = {"best_latency_ms": self.best_latency_ms, "validated_at": self.validated_at, "seconds": self._seconds()}
        checkpoints.save(self.model, extra, self.run.state)  # type: ignore[arg-type]
        return latency_ms

    def _save(self, policy: NetworkPolicy, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        policy.save(temporary)
        temporary.replace(path)
