"""What is decoded: models, prompts, arms. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dispatch_rl.decoding.arms import LOOKUP, NONE, RESERVED_NAMES, Arm
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError


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
    """pocket (generated problems and library code); a .txt, .jsonl, .json or .parquet file with one prompt per line or row; a folder of
    such files or one that `Dataset.save_to_disk` wrote; or a dataset on the hub, as openai/gsm8k."""
    column: str = "prompt"
    """Column that holds the prompt; a .txt file needs none."""
    subset: str | None = None
    """Configuration of a hub dataset, as main for openai/gsm8k."""
    dataset_split: str = "train"
    """Split of a hub or folder dataset that prompts are drawn from; our own train, validation and test parts are made from it."""
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

    @property
    def watches(self) -> bool:
        """Whether students look at how clear their choices are, so that more is recorded of them."""
        return any(arm.watches for arm in self.arms or ())

    def arm_list(self, students: Sequence[str] | None = None, lookup: bool = True) -> list[Arm]:
        """Return the arms; if none are given, every student, lookup and none.

        Args:
            students: Students of a recording, instead of the family's.
            lookup: Whether prompt lookup is to be had.
        """
        if self.arms is not None:
            return self.arms
        if self.draft_length < 1:
            raise UserError(f"draft_length: {self.draft_length} is not at least 1")
        names = [*(self.family.students if students is None else students), *([LOOKUP] if lookup else [])]
        return [*(Arm(name, self.draft_length) for name in names), Arm(NONE)]
