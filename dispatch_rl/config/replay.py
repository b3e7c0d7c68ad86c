"""How traces are recorded and latencies measured. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dispatch_rl.decoding.arms import Arm
from dispatch_rl.errors import UserError, check_seed


@dataclass(frozen=True)
class RecordingConfig:
    """Recording of traces for exact replay."""

    train_prompts: int = 384
    """Prompts to train on."""
    validation_prompts: int = 96
    """Prompts that policies are chosen on."""
    test_prompts: int = 96
    """Held-out prompts that policies are compared on in replay."""
    max_draft_length: int = 24
    """Longest draft length that arms may have (tokens)."""
    batch_size: int = 32
    """Texts that the target writes at once."""
    shard_size: int = 64
    """Texts per shard; a recording that was interrupted goes on with the next shard."""
    threads: int | None = None
    """CPU threads while recording; null means family.threads. More than one pays only on cores that nobody else uses."""

    def __post_init__(self) -> None:
        for key in ("train_prompts", "validation_prompts", "test_prompts", "max_draft_length", "batch_size", "shard_size"):
            if getattr(self, key) < 1:
                raise UserError(f"recording.{key}: {getattr(self, key)} is not at least 1")
        if self.max_draft_length > 255:
            raise UserError(f"recording.max_draft_length: {self.max_draft_length} is more than 255")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"recording.threads: {self.threads} is not at least 1")

    def check_arms(self, arms: Sequence[Arm]) -> None:
        """Refuse arms that draft more than is recorded.

        Raises:
            UserError: Naming the arm.
        """
        for arm in arms:
            if arm.length > self.max_draft_length:
                raise UserError(
                    f"arms: '{arm.name}' drafts {arm.length} tokens, more than recording.max_draft_length, {self.max_draft_length}; "
                    "lower draft_length or the arm's own, or raise it"
                )


@dataclass(frozen=True)
class ProfilingConfig:
    """Measuring of the latency profile."""

    rounds: int = 3_000
    """Rounds of decoding that are measured."""
    draft_lengths: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 6, 8, 12, 16, 24])
    """Draft lengths that are measured besides those of the arms (tokens)."""
    longest_context: int = 1_024
    """Longest text that is measured (tokens); beyond it the profile continues as it ends."""
    contexts: list[int] | None = None
    """Measure over the last 256 tokens up to each of these lengths of the text only, instead of all the way up to longest_context;
    lengths that the family cannot read are left out."""
    seed: int = 0
    """Seed of the texts and of the choice of students, lengths and catch-ups."""

    def __post_init__(self) -> None:
        if self.rounds < 100:
            raise UserError(f"profiling.rounds: {self.rounds} is not at least 100")
        check_seed("profiling.seed", self.seed)
        if any(length < 1 for length in self.draft_lengths):
            raise UserError(f"profiling.draft_lengths: {self.draft_lengths} has a length below 1")
        if self.longest_context < 64:
            raise UserError(f"profiling.longest_context: {self.longest_context} is not at least 64")
        if self.contexts is not None and (not self.contexts or min(self.contexts) < 64 or self.contexts != sorted(set(self.contexts))):
            raise UserError(f"profiling.contexts: {self.contexts} are not lengths of at least 64 that rise")


READ_ALONG = 0.01
"""Share of the target's forward pass up to which a drafter is as good as free."""


@dataclass(frozen=True)
class ReplayConfig:
    """Where replay takes its traces and latencies from."""

    traces: Path | None = None
    """Recording to use: a folder with train, validation and test parts, or one recording that is then parted by itself. null records
    what the configuration describes and keeps it in the cache."""
    profile: Path | None = None
    """Latency profile (JSON) to use; null measures one on this device and keeps it in the cache."""
    cache: Path = Path("traces")
    """Folder of the recordings and profiles that are made when none are given."""
    read_along: float = READ_ALONG
    """For recordings without entropies: the cheapest drafters make a forward pass in every round, as many as together take at most this
    share of the target's, so that the policy knows at once where they would have been right, and pays for it; 0 means none does."""

    def __post_init__(self) -> None:
        if not 0 <= self.read_along <= 1:
            raise UserError(f"replay.read_along: {self.read_along} is not in 0 ... 1")
