"""Every key of every configuration file. Imports nothing heavy."""

from dispatch_rl.config.decoding import DecodingConfig
from dispatch_rl.config.families import FamilyConfig, ModelSource
from dispatch_rl.config.learners import DQNConfig, PolicyIterationConfig, PPOConfig, QRDQNConfig, RewardConfig
from dispatch_rl.config.prompts import PromptConfig
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
    "PolicyIterationConfig",
    "ProfilingConfig",
    "PromptConfig",
    "QRDQNConfig",
    "RecordingConfig",
    "ReplayConfig",
    "RewardConfig",
    "ThresholdConfig",
    "TrackingConfig",
    "TrainConfig",
]
