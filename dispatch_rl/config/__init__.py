"""Every key of every configuration file. Imports nothing heavy."""

from dispatch_rl.config.decoding import DecodingConfig, FamilyConfig, ModelSource, PromptConfig
from dispatch_rl.config.learners import DQNConfig, PPOConfig, RewardConfig
from dispatch_rl.config.replay import ProfilingConfig, RecordingConfig, ReplayConfig
from dispatch_rl.config.tracking import TrackingConfig
from dispatch_rl.config.training import EvaluationConfig, ThresholdConfig, TrainConfig

__all__ = [
    "DQNConfig",
    "DecodingConfig",
    "EvaluationConfig",
    "FamilyConfig",
    "ModelSource",
    "PPOConfig",
    "ProfilingConfig",
    "PromptConfig",
    "RecordingConfig",
    "ReplayConfig",
    "RewardConfig",
    "ThresholdConfig",
    "TrackingConfig",
    "TrainConfig",
]
