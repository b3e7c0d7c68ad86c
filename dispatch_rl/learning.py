"""Proximal policy optimisation of a dispatcher with Stable-Baselines3, and its export to numpy."""

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from dispatch_rl.config import PPOConfig
from dispatch_rl.envs.live import LiveDecodingEnv
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.runs import RunFolder

_RECENT_ROUNDS = 500


class ScaledFeatures(BaseFeaturesExtractor):
    """Divides every feature by its scale; nothing else."""

    def __init__(self, observation_space: spaces.Box, scale: list[float]) -> None:
        super().__init__(observation_space, features_dim=len(scale))
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, observations: Tensor) -> Tensor:
        scaled: Tensor = observations / self.scale
        return scaled


def build_ppo(env: LiveDecodingEnv, config: PPOConfig, seed: int, tensorboard: Path) -> PPO:
    """Return PPO on ``env``, its learning rate falling linearly to zero."""
    return PPO(
        "MlpPolicy",
        Monitor(env),
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        learning_rate=lambda remaining: config.learning_rate * remaining,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.ent_coef,
        policy_kwargs={
            "net_arch": list(config.net_arch),
            "activation_fn": nn.Tanh,
            "features_extractor_class": ScaledFeatures,
            "features_extractor_kwargs": {"scale": [feature.scale for feature in env.features]},
        },
        tensorboard_log=str(tensorboard),
        seed=seed,
        device="cpu",
    )


def extract_policy(model: PPO) -> NetworkPolicy:
    """Return the actor of ``model`` as a numpy policy that decides alike."""
    layers = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, nn.Linear)]
    layers.append(model.policy.action_net)  # type: ignore[arg-type]
    return NetworkPolicy(
        model.policy.pi_features_extractor.scale.numpy().copy(),  # type: ignore[operator]
        [layer.weight.detach().numpy().copy() for layer in layers],
        [layer.bias.detach().numpy().copy() for layer in layers],
    )


class Recorder(BaseCallback):
    """Writes metrics, checkpoints and the best policy while PPO learns.

    Args:
        run: Where everything goes.
        env: The environment that is learned from.
        validate: Returns the latency (ms per token) of a policy on validation prompts.
        validate_every: Rounds between two validations.
        progress: Told the number of rounds done and a line about them.
    """

    def __init__(
        self,
        run: RunFolder,
        env: LiveDecodingEnv,
        validate: Callable[[NetworkPolicy], float],
        validate_every: int,
        progress: Callable[[int, str], None],
    ) -> None:
        super().__init__()
        self.run = run
        self.env = env
        self.validate = validate
        self.validate_every = validate_every
        self.progress = progress
        self.best_latency_ms = float("inf")
        self._rounds: deque[tuple[str, int, float, int, int]] = deque(maxlen=_RECENT_ROUNDS)
        self._began = monotonic()
        self._validated_at = 0

    def _on_step(self) -> bool:
        record = self.locals["infos"][0]["round"]
        entry = (record.arm, len(record.emitted), record.latency_ms, record.num_accepted, len(record.drafted))
        self._rounds.append(entry)
        if self.num_timesteps % 64 == 0:
            self.progress(self.num_timesteps, f"{self._recent()['latency_ms_per_token']:.3f} ms per token")
        return True

    def _on_rollout_end(self) -> None:
        row = {"step": self.num_timesteps, "seconds": round(monotonic() - self._began, 3), **self._recent()}
        row["policy_entropy_nats"] = self._policy_entropy()
        for key in ("latency_ms_per_token", "draft_acceptance_rate", "policy_entropy_nats"):
            self.logger.record(f"decoding/{key}", row[key])
        for arm, share in row["arm_shares"].items():
            self.logger.record(f"arms/{arm}", share)
        if self.num_timesteps - self._validated_at >= self.validate_every:
            row["validation_latency_ms_per_token"] = self.validate_now()
        self.run.append_metrics([row])

    def validate_now(self) -> float:
        """Validate the policy as it is, keep it as a checkpoint and, if no other was faster, as the best."""
        self._validated_at = self.num_timesteps
        policy = extract_policy(self.model)  # type: ignore[arg-type]
        latency_ms = self.validate(policy)
        self.logger.record("validation/latency_ms_per_token", latency_ms)
        self._save(policy, self.run.checkpoint(self.num_timesteps))
        if latency_ms < self.best_latency_ms:
            self.best_latency_ms = latency_ms
            self._save(policy, self.run.best_policy)
        return latency_ms

    def _save(self, policy: NetworkPolicy, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        policy.save(temporary)
        temporary.replace(path)

    def _recent(self) -> dict[str, Any]:
        arms, emitted, latencies, accepted, drafted = zip(*self._rounds, strict=True)
        return {
            "latency_ms_per_token": sum(latencies) / sum(emitted),
            "draft_acceptance_rate": sum(accepted) / max(1, sum(drafted)),
            "mean_acceptance_length": sum(emitted) / len(emitted),
            "arm_shares": {arm: count / len(arms) for arm, count in sorted(Counter(arms).items())},
        }

    def _policy_entropy(self) -> float:
        """Return the mean entropy of the action distribution over the rollout; near zero means it has collapsed."""
        observations = self.model.rollout_buffer.observations.reshape(-1, len(self.env.features))  # type: ignore[attr-defined]
        with torch.no_grad():
            distribution = self.model.policy.get_distribution(torch.as_tensor(observations[:512]))  # type: ignore[operator]
        return float(np.mean(distribution.entropy().numpy()))
