"""Every key of every configuration file. Imports nothing heavy."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dispatch_rl.decoding.arms import LOOKUP, NONE, RESERVED_NAMES, Arm
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    path: str
    """Folder, hub id, or `pocket:NAME` for a model that ships with the package."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


def _pocket(name: str) -> ModelSource:
    return ModelSource(f"pocket:{name}")


@dataclass(frozen=True)
class FamilyConfig:
    """One target and its students, which must share its tokenizer."""

    target: ModelSource = _pocket("target")
    """The model whose text is produced."""
    students: dict[str, ModelSource] = field(default_factory=lambda: {n: _pocket(n) for n in ("small", "medium", "large")})
    """Draft models by name, from cheap to expensive."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights in memory."""
    device: str = "auto"
    """Where the models run: cpu, cuda, cuda:1 or auto."""
    threads: int | None = 1
    """CPU threads; null leaves the choice to torch. Models as small as the pocket family are fastest with one."""

    def __post_init__(self) -> None:
        if reserved := set(self.students).intersection(RESERVED_NAMES):
            raise UserError(f"family.students: the name '{reserved.pop()}' is reserved; choose another")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"family.threads: {self.threads} is not at least 1")


@dataclass(frozen=True)
class PromptConfig:
    """What is decoded."""

    source: str = "pocket"
    """pocket (generated problems and library code), or a .txt, .jsonl or .parquet file with one prompt per line or row."""
    column: str = "prompt"
    """Column of a .jsonl or .parquet file that holds the prompt."""
    kinds: list[str] = field(default_factory=lambda: ["reasoning", "code"])
    """Kinds of pocket prompts, drawn in turn."""
    max_new_tokens: int = 160
    """Tokens to emit per prompt at most."""
    seed: int = 0
    """Seed of the choice of prompts and of the noise of each."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise UserError(f"prompts.max_new_tokens: {self.max_new_tokens} is not at least 2")
        if unknown := set(self.kinds) - {"reasoning", "code"}:
            raise UserError(f"prompts.kinds: unknown {', '.join(sorted(unknown))}; there are reasoning and code")
        if not self.kinds:
            raise UserError("prompts.kinds: the list is empty")


@dataclass(frozen=True)
class RewardConfig:
    """Reward of a round: (tokens * reference - latency) / reference, plus the acceptance term."""

    acceptance_weight: float = 0.0
    """Weight of accepted / drafted. Rewarding acceptance itself makes decoding slower; leave it at 0."""
    reference_ms_per_token: float | None = None
    """Latency of the target alone; null measures it when the environment is made."""
    clip: float = 20.0
    """Rewards are clipped to plus or minus this, so that a stall of the machine teaches nothing."""

    def __post_init__(self) -> None:
        if self.reference_ms_per_token is not None and not self.reference_ms_per_token > 0:
            raise UserError(f"reward.reference_ms_per_token: {self.reference_ms_per_token} is not above 0")
        if not self.clip > 0:
            raise UserError(f"reward.clip: {self.clip} is not above 0")


@dataclass(frozen=True)
class ThresholdConfig:
    """The baseline: the previous token's entropy decides who drafts."""

    limits: list[float] | None = None
    """Rising entropies (nats) between one student and the next; null means 0.4 and 0.8, as many as are needed."""
    students: list[str] | None = None
    """Students from low to high entropy, one more than limits; null means all that have an arm, in the family's order."""


@dataclass(frozen=True)
class PPOConfig:
    """Stable-Baselines3's PPO."""

    total_steps: int = 32_768
    """Rounds of decoding to learn from."""
    n_steps: int = 1_024
    """Rounds between two updates."""
    batch_size: int = 256
    """Rounds per gradient step."""
    n_epochs: int = 8
    """Passes over the rounds of an update."""
    learning_rate: float = 0.001
    """Adam's learning rate, falling linearly to zero."""
    gamma: float = 0.8
    """Discount per round."""
    gae_lambda: float = 0.8
    """Bias against variance of the advantage."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    net_arch: list[int] = field(default_factory=lambda: [32, 32])
    """Widths of the hidden layers."""

    def __post_init__(self) -> None:
        for key in ("total_steps", "n_steps", "batch_size", "n_epochs", "learning_rate"):
            if not getattr(self, key) > 0:
                raise UserError(f"ppo.{key}: {getattr(self, key)} is not above 0")
        for key in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"ppo.{key}: {getattr(self, key)} is not in 0 ... 1")
        if self.ent_coef < 0:
            raise UserError(f"ppo.ent_coef: {self.ent_coef} is below 0")
        if not all(width > 0 for width in self.net_arch):
            raise UserError(f"ppo.net_arch: {self.net_arch} has a width that is not above 0")
        if self.n_steps < 2:
            raise UserError(f"ppo.n_steps: {self.n_steps} is not at least 2")
        if self.batch_size > self.n_steps:
            raise UserError(f"ppo.batch_size: {self.batch_size} is more than ppo.n_steps, {self.n_steps}")


@dataclass(frozen=True)
class EvaluationConfig:
    """Live, paired comparison on held-out prompts."""

    prompts: int = 48
    """Held-out prompts; every policy decodes each of them."""
    seed: int = 1
    """Seed of the prompts, of the order of the policies and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise UserError(f"evaluation.prompts: {self.prompts} is not at least 2, so there would be no interval")


@dataclass(frozen=True)
class DecodingConfig:
    """What is decoded, by which models, with which arms."""

    family: FamilyConfig = FamilyConfig()
    """The models."""
    arms: list[Arm] | None = None
    """What the dispatcher chooses from; null means every student, lookup and none, at draft_length."""
    draft_length: int = 5
    """Draft length of the default arms (tokens)."""
    sampling: Sampling = Sampling(temperature=0.6)
    """How tokens are chosen."""
    prompts: PromptConfig = PromptConfig()
    """What is decoded."""

    def arm_list(self) -> list[Arm]:
        """Return the arms, the default ones if none are given."""
        if self.arms is not None:
            return self.arms
        if self.draft_length < 1:
            raise UserError(f"draft_length: {self.draft_length} is not at least 1")
        return [*(Arm(name, self.draft_length) for name in self.family.students), Arm(LOOKUP, self.draft_length), Arm(NONE)]


@dataclass(frozen=True)
class TrainConfig(DecodingConfig):
    """A training run."""

    name: str = "pocket"
    """Name of the run; its folder is runs/NAME."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    overwrite: bool = False
    """Replace a run of the same name."""
    seed: int = 0
    """Seed of the network and of its exploration."""
    reward: RewardConfig = RewardConfig()
    """What is rewarded."""
    threshold: ThresholdConfig = ThresholdConfig()
    """The baseline policy."""
    ppo: PPOConfig = PPOConfig()
    """The learner."""
    validate_every: int = 4_096
    """Rounds between two validations, by which the best policy is chosen."""
    validation_prompts: int = 12
    """Prompts per validation."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The comparison at the end."""

    def __post_init__(self) -> None:
        if not _RUN_NAME.fullmatch(self.name):
            raise UserError(f"name: '{self.name}' may hold letters, digits, '.', '_' and '-', and begins with none of the last three")
        for key in ("validate_every", "validation_prompts"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not at least 1")
