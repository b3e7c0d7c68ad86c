"""What is rewarded, and who learns. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dispatch_rl.errors import UserError


@dataclass(frozen=True)
class RewardConfig:
    """Reward of a round: (tokens * reference - latency) / reference, plus the acceptance term."""

    acceptance_weight: float = 0.0
    """Weight of accepted / drafted. Rewarding acceptance itself makes decoding slower; leave it at 0."""
    reference_ms_per_token: float | None = None
    """Latency per token (ms) that earns nothing; null means, live, that of the target alone, measured when the environment is made, and in
    replay that of the best fixed arm on the texts."""
    clip: float = 20.0
    """Rewards are clipped to plus or minus this, so that a stall of the machine teaches nothing."""

    def __post_init__(self) -> None:
        if self.reference_ms_per_token is not None and not self.reference_ms_per_token > 0:
            raise UserError(f"reward.reference_ms_per_token: {self.reference_ms_per_token} is not above 0")
        if not self.clip > 0:
            raise UserError(f"reward.clip: {self.clip} is not above 0")


@dataclass(frozen=True)
class PPOConfig:
    """Stable-Baselines3's PPO. Where null stands, live training takes the smaller number."""

    total_steps: int | None = None
    """Rounds to learn from; null means 1,000,000 in replay and 32,768 live."""
    rollout_steps: int | None = None
    """Rounds, of all texts together, between two updates; null means 16,384 in replay and 1,024 live."""
    batch_size: int | None = None
    """Rounds per gradient step; null means 4,096 in replay and 256 live."""
    n_epochs: int = 4
    """Passes over the rounds of an update."""
    learning_rate: float = 0.001
    """Adam's learning rate, falling linearly to zero."""
    gamma: float = 0.97
    """Discount per round."""
    gae_lambda: float = 0.9
    """Bias against variance of the advantage."""
    ent_coef: float = 0.003
    """Weight of the entropy bonus."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers."""

    def __post_init__(self) -> None:
        _check_positive("ppo", self, ("total_steps", "rollout_steps", "batch_size", "n_epochs", "learning_rate"))
        if self.batch_size == 1:
            raise UserError("ppo.batch_size: 1 is not at least 2, so advantages could not be normalised")
        for key in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"ppo.{key}: {getattr(self, key)} is not in 0 ... 1")
        if self.ent_coef < 0:
            raise UserError(f"ppo.ent_coef: {self.ent_coef} is below 0")
        _check_widths("ppo", self.net_arch)

    def sizes(self, live: bool) -> tuple[int, int, int]:
        """Return total, rollout and batch size (rounds)."""
        total, rollout, batch = (32_768, 1_024, 256) if live else (1_000_000, 16_384, 4_096)
        total, rollout = self.total_steps or total, self.rollout_steps or rollout
        batch = min(batch, rollout) if self.batch_size is None else self.batch_size
        if batch > rollout:
            raise UserError(f"ppo.batch_size: {batch} is more than ppo.rollout_steps, {rollout}")
        return total, rollout, batch


@dataclass(frozen=True)
class DQNConfig:
    """Stable-Baselines3's DQN, for replay."""

    total_steps: int = 1_000_000
    """Rounds to learn from."""
    buffer_size: int = 200_000
    """Rounds that are remembered."""
    learning_starts: int = 20_000
    """Rounds before the first update."""
    batch_size: int = 2_048
    """Rounds per gradient step."""
    gradient_steps: int = 1
    """Gradient steps after one round of every text."""
    target_update_interval: int = 20_000
    """Rounds between two updates of the target network."""
    learning_rate: float = 0.001
    """Adam's learning rate, falling linearly to zero."""
    gamma: float = 0.97
    """Discount per round."""
    exploration_fraction: float = 0.3
    """Share of the training during which exploration falls to its final value."""
    exploration_final_eps: float = 0.05
    """Share of random arms from then on."""
    net_arch: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the hidden layers."""
    _section: ClassVar[str] = "dqn"

    def __post_init__(self) -> None:
        keys = ("total_steps", "buffer_size", "learning_starts", "batch_size", "gradient_steps", "target_update_interval", "learning_rate")
        _check_positive(self._section, self, keys)
        for key in ("gamma", "exploration_fraction", "exploration_final_eps"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"{self._section}.{key}: {getattr(self, key)} is not in 0 ... 1")
        _check_widths(self._section, self.net_arch)


@dataclass(frozen=True)
class QRDQNConfig(DQNConfig):
    """QR-DQN of Stable-Baselines3's contributions, for replay: DQN that learns the quantiles of what an arm is worth, not its mean."""

    n_quantiles: int = 25
    """Quantiles per arm; the policy chooses by their mean."""
    batch_size: int = 512
    """Rounds per gradient step, whose costs grow with the square of n_quantiles."""
    _section: ClassVar[str] = "qrdqn"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self._section, self, ("n_quantiles",))


@dataclass(frozen=True)
class PolicyIterationConfig:
    """Policy iteration with exact consequences, for replay: :mod:`dispatch_rl.iteration`."""

    iterations: int = 16
    """Improvements of the policy."""
    starts: int = 3
    """Learners that begin: one with each of the students alone, the next with all arms, and so on; the one that is fastest on validation
    texts goes on, with all arms. 1 means a single one. It has all arms from the beginning, as all have that begin with the policy of
    another run (init)."""
    heat: int = 5
    """Iterations of each of them before that is decided, at most half of all."""
    states: int = 4_096
    """States, about, from which every arm is tried in each of them."""
    horizon: int = 512
    """Tokens behind a state that are followed with every arm. Of longer texts, what comes later is taken to cost the same whatever is done
    at that state."""
    keep: int = 5
    """Iterations whose states are learned from, the last ones."""
    stay: float = 0.1
    """Chance per round that exploration begins to stay with a random arm."""
    leave: float = 0.3
    """Chance per round that it goes back to the policy."""
    n_epochs: int = 15
    """Times that all kept states are gone through in an iteration."""
    batch_size: int = 512
    """States per gradient step."""
    learning_rate: float = 0.001
    """Adam's learning rate."""
    ent_coef: float = 0.03
    """Weight of the policy's entropy, which keeps it exploring."""
    net_arch: list[int] = field(default_factory=lambda: [64])
    """Widths of the hidden layers. On the pocket family a second one chooses no better, and takes half as long again."""

    def __post_init__(self) -> None:
        counts = ("iterations", "starts", "heat", "states", "horizon", "keep", "n_epochs", "batch_size")
        _check_positive("policy_iteration", self, (*counts, "learning_rate", "leave"))
        for key in ("stay", "leave"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"policy_iteration.{key}: {getattr(self, key)} is not in 0 ... 1")
        if self.ent_coef < 0:
            raise UserError(f"policy_iteration.ent_coef: {self.ent_coef} is below 0")
        _check_widths("policy_iteration", self.net_arch)

    @property
    def heat_length(self) -> int:
        """Iterations of a heat; 0 if there is none."""
        return min(self.heat, self.iterations // 2) if self.starts > 1 else 0

    @property
    def all_iterations(self) -> int:
        """Iterations of all learners that begin, together."""
        return self.iterations + (self.starts - 1) * self.heat_length


def _check_positive(section: str, config: object, keys: Sequence[str]) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise UserError(f"{section}.{key}: {value} is not above 0")


def _check_widths(section: str, widths: Sequence[int]) -> None:
    if not all(width > 0 for width in widths):
        raise UserError(f"{section}.net_arch: {list(widths)} has a width that is not above 0")
