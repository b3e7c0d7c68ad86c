"""A training run, from its texts to its evaluation. Imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dispatch_rl.config.decoding import DecodingConfig
from dispatch_rl.config.learners import DQNConfig, PolicyIterationConfig, PPOConfig, QRDQNConfig, RewardConfig
from dispatch_rl.config.replay import ProfilingConfig, RecordingConfig, ReplayConfig
from dispatch_rl.config.tracking import TrackingConfig
from dispatch_rl.errors import UserError, check_seed

Algorithm = Literal["ppo", "dqn", "qrdqn", "policy_iteration"]

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ThresholdConfig:
    """The baseline: the previous token's entropy decides who drafts."""

    limits: list[float] | None = None
    """Rising entropies (nats) between one student and the next; null means 0.4 and 0.8, as many as are needed."""
    students: list[str] | None = None
    """Students from low to high entropy, one more than limits; null means all that have an arm, in the
    family's order, or the first, middle and last of them if limits is null too."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Comparison on held-out prompts: exact in replay, measured and paired live."""

    prompts: int = 40
    """Held-out prompts that every policy decodes live; 0 leaves the live comparison out."""
    seed: int = 1
    """Seed of the prompts, of the order of the policies and of the bootstrap."""

    def __post_init__(self) -> None:
        check_seed("evaluation.seed", self.seed)
        if self.prompts < 2 and self.prompts != 0:
            raise UserError(
                f"evaluation.prompts: {self.prompts} is not at least 2, so there would be no interval (0 for no live comparison)"
            )


@dataclass(frozen=True)
class TrainConfig(DecodingConfig):
    """A training run."""

    name: str = "pocket"
    """Name of the run; its folder is runs/NAME."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    overwrite: bool = False
    """Replace a run of the same name."""
    env: Literal["replay", "live"] = "replay"
    """replay learns from recorded traces, in a minute; live learns from real decoding, in real time."""
    algo: Algorithm | None = None
    """The learning algorithm. DQN, QR-DQN and policy iteration, which follows the consequences of every arm, are for replay. null means
    policy iteration, or PPO where the training is live, an option of ppo is given, or a key of ppo or reward.acceptance_weight is not what
    it is by default."""
    init: Path | None = None
    """Folder of a finished run whose policy is the starting point, as to fine-tune a replayed policy live (PPO)."""
    seed: int = 0
    """Seed of the network, of its exploration and of the choice of validation prompts, which another seed records anew."""
    replay: ReplayConfig = ReplayConfig()
    """Where traces and latencies come from."""
    recording: RecordingConfig = RecordingConfig()
    """How traces are recorded."""
    profiling: ProfilingConfig = ProfilingConfig()
    """How latencies are measured."""
    reward: RewardConfig = RewardConfig()
    """What is rewarded."""
    threshold: ThresholdConfig = ThresholdConfig()
    """The baseline policy."""
    ppo: PPOConfig = PPOConfig()
    """Settings of --algo ppo."""
    dqn: DQNConfig = DQNConfig()
    """Settings of --algo dqn."""
    qrdqn: QRDQNConfig = QRDQNConfig()
    """Settings of --algo qrdqn."""
    policy_iteration: PolicyIterationConfig = PolicyIterationConfig()
    """Settings of --algo policy_iteration."""
    num_envs: int = 256
    """Texts that are replayed side by side, to learn from by ppo, dqn and qrdqn."""
    validate_every: int | None = None
    """Rounds between two validations, by which the best policy is chosen, and after each of which a killed training can go on; null
    means 65,536 in replay and 4,096 live. Policy iteration validates after every iteration."""
    validation_prompts: int = 12
    """Prompts per validation of a live training; in replay all recorded ones are used."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The comparison at the end."""
    track: Literal["wandb"] | None = None
    """wandb: the run is also followed with Weights & Biases, as the section tracking says; null: in the run's folder only."""
    tracking: TrackingConfig = TrackingConfig()
    """How the run is followed."""

    def __post_init__(self) -> None:
        if not _RUN_NAME.fullmatch(self.name):
            raise UserError(
                f"name: '{self.name}' is no name of a run: use letters, digits, '.', '_' and '-', and begin with a letter or a digit"
            )
        for key in ("validate_every", "validation_prompts", "num_envs"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not at least 1")
        check_seed("seed", self.seed)
        if self.live and not self.evaluation.prompts:
            raise UserError("evaluation.prompts: 0 leaves a live training nothing to be compared on; give at least 2")
        if self.algorithm == "policy_iteration" and self.reward.acceptance_weight:
            raise UserError("reward.acceptance_weight: policy_iteration minimises latency itself; leave it at 0 or choose another --algo")
        if self.live and self.algorithm != "ppo":
            raise UserError(f"algo: live training is for ppo; {self.algo} needs --env replay")
        if self.init is not None and self.algo in ("dqn", "qrdqn"):
            raise UserError(f"init: {self.algo} cannot start from the policy of another run; ppo and policy_iteration can")
        if self.algorithm == "ppo":
            _, rollout, _ = self.ppo.sizes(self.live)
            if not self.live and rollout % self.num_envs:
                raise UserError(f"ppo.rollout_steps: {rollout} is not a multiple of num_envs, {self.num_envs}")
            if rollout < 2 or (not self.live and rollout // self.num_envs < 2):
                raise UserError(f"ppo.rollout_steps: {rollout} is not at least 2 for each of num_envs, {self.num_envs}")

    @property
    def live(self) -> bool:
        """Whether the training decodes for real."""
        return self.env == "live"

    @property
    def algorithm(self) -> Algorithm:
        """Who learns: algo, or what null means."""
        if self.algo is not None:
            return self.algo
        return "ppo" if self.live or self.reward.acceptance_weight or self.ppo != PPOConfig() else "policy_iteration"

    @property
    def from_elsewhere(self) -> bool:
        """Whether the training replays a recording that is named, whose models and settings need not be these."""
        return self.replay.traces is not None and not self.live

    @property
    def total_steps(self) -> int:
        """Rounds to learn from."""
        if self.algorithm == "policy_iteration":
            return self.policy_iteration.all_iterations * self.policy_iteration.states
        if self.algorithm == "ppo":
            return self.ppo.sizes(self.live)[0]
        return (self.dqn if self.algorithm == "dqn" else self.qrdqn).total_steps

    @property
    def net_arch(self) -> list[int]:
        """Widths of the hidden layers of the policy."""
        learner: PPOConfig | DQNConfig | PolicyIterationConfig = getattr(self, self.algorithm)
        return learner.net_arch

    @property
    def validation_interval(self) -> int:
        """Rounds between two validations."""
        return self.validate_every or (4_096 if self.live else 65_536)
