"""Stable-Baselines3's learners on replay or on real decoding, and their export to numpy."""

from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from dispatch_rl import layers
from dispatch_rl.config import DQNConfig, TrainConfig
from dispatch_rl.decoding.features import Feature
from dispatch_rl.policies.network import NetworkPolicy

Learner = PPO | DQN | QRDQN


class ScaledFeatures(BaseFeaturesExtractor):
    """Divides every feature by its scale; nothing else."""

    def __init__(self, observation_space: spaces.Box, scale: list[float]) -> None:
        super().__init__(observation_space, features_dim=len(scale))
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, observations: Tensor) -> Tensor:
        scaled: Tensor = observations / self.scale
        return scaled


def build_learner(env: VecEnv, features: tuple[Feature, ...], config: TrainConfig, tensorboard: Path | None) -> Learner:
    """Return the configured learner on ``env``, its learning rate falling linearly to zero."""
    common = {
        "policy": "MlpPolicy",
        "env": env,
        "tensorboard_log": None if tensorboard is None else str(tensorboard),
        "seed": config.seed,
        "device": "cpu",
    }
    network = {
        "activation_fn": nn.Tanh,
        "features_extractor_class": ScaledFeatures,
        "features_extractor_kwargs": {"scale": [feature.scale for feature in features]},
    }
    if config.algorithm == "ppo":
        _, rollout, batch = config.ppo.sizes(config.live)
        ppo = config.ppo
        return PPO(
            learning_rate=lambda remaining: ppo.learning_rate * remaining,
            n_steps=rollout // env.num_envs,
            batch_size=batch,
            n_epochs=ppo.n_epochs,
            gamma=ppo.gamma,
            gae_lambda=ppo.gae_lambda,
            ent_coef=ppo.ent_coef,
            policy_kwargs={**network, "net_arch": list(ppo.net_arch)},
            **common,  # type: ignore[arg-type]
        )
    if config.algorithm == "qrdqn":
        network |= {"net_arch": list(config.qrdqn.net_arch), "n_quantiles": config.qrdqn.n_quantiles}
        return QRDQN(policy_kwargs=network, **_off_policy(config.qrdqn), **common)  # type: ignore[arg-type]
    return DQN(policy_kwargs={**network, "net_arch": list(config.dqn.net_arch)}, **_off_policy(config.dqn), **common)  # type: ignore[arg-type]


def _off_policy(section: DQNConfig) -> dict[str, Any]:
    """Return what DQN and QR-DQN have in common."""
    return {
        "learning_rate": lambda remaining: section.learning_rate * remaining,
        "gamma": section.gamma,
        "buffer_size": section.buffer_size,
        "learning_starts": section.learning_starts,
        "batch_size": section.batch_size,
        "train_freq": 1,
        "gradient_steps": section.gradient_steps,
        "target_update_interval": section.target_update_interval,
        "exploration_fraction": section.exploration_fraction,
        "exploration_final_eps": section.exploration_final_eps,
        "max_grad_norm": 10,
    }


def extract_policy(model: Learner) -> NetworkPolicy:
    """Return what decides in ``model`` as a numpy policy that decides alike."""
    weights, biases = layers.read(_linears(model))
    if isinstance(model, QRDQN):
        # It chooses by the mean of an action's quantiles, which the last layer gives quantile by quantile.
        weights[-1] = weights[-1].reshape(model.n_quantiles, -1, weights[-1].shape[1]).mean(axis=0)
        biases[-1] = biases[-1].reshape(model.n_quantiles, -1).mean(axis=0)
    return NetworkPolicy(_extractor(model).scale.numpy().copy(), weights, biases)


def start_from(model: PPO, policy: NetworkPolicy) -> None:
    """Give the actor of ``model`` the weights of ``policy``, which must have the same shape.

    Raises:
        ValueError: It has another shape.
    """
    layers.write(_linears(model), policy)


def action_entropy(model: PPO) -> float:
    """Return the mean entropy (nats) of the action distribution over a part of the last rollout; near zero means it has collapsed."""
    observations = model.rollout_buffer.observations  # before the first update [steps, episodes, features], later flat
    sample = observations.reshape(-1, observations.shape[-1])[:512]
    with torch.no_grad():
        entropy = model.policy.get_distribution(torch.as_tensor(sample)).entropy()
    assert entropy is not None
    return float(entropy.mean())


def _linears(model: Learner) -> list[nn.Linear]:
    if isinstance(model, PPO):
        return layers.linears(model.policy.mlp_extractor.policy_net, model.policy.action_net)
    return layers.linears(model.quantile_net.quantile_net if isinstance(model, QRDQN) else model.q_net.q_net)


def _extractor(model: Learner) -> ScaledFeatures:
    if isinstance(model, PPO):
        extractor = model.policy.pi_features_extractor
    else:
        extractor = (model.quantile_net if isinstance(model, QRDQN) else model.q_net).features_extractor
    assert isinstance(extractor, ScaledFeatures)
    return extractor
