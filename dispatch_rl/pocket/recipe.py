"""What a family is made of and how it is trained. Imports nothing heavy."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from dispatch_rl.errors import UserError


@dataclass(frozen=True)
class ModelSize:
    """The shape of one Qwen2 model."""

    hidden_size: int
    """Width of the residual stream."""
    layers: int
    """Number of transformer layers."""
    heads: int
    """Attention heads; each must have an even share of hidden_size."""
    intermediate_size: int
    """Width of the gated feed-forward."""


@dataclass(frozen=True)
class Optimisation:
    """How the weights move: Muon for matrices, AdamW for embeddings, norms and biases."""

    steps: int = 8000
    """Optimiser steps of the target."""
    warmup_steps: int = 60
    """Steps over which the learning rate rises from zero, for the target and again for the students."""
    alone_steps: int = 4000
    """First steps, at the full rate, in which the target learns alone."""
    alone_reasoning_share: float = 0.5
    """Share of the windows with generated problems in those steps; less than later, because what is learned late is known best."""
    joint_rate: float = 0.3
    """Share of the full rate at which the students join; from there it falls linearly to zero."""
    last_steps: int = 2500
    """Steps after the target is finished, in which all students are distilled from it; those of its width begin as some of its layers."""
    last_reasoning_share: float = 0.5
    """Share of the windows with generated problems in the last steps."""
    last_temperatures: tuple[float, ...] = (1.0, 0.6)
    """Temperatures at which a student is to agree with the target in the last steps; low ones teach it what is likely."""
    matrix_learning_rate: float = 0.008
    """Muon's full learning rate, scaled to AdamW's update size."""
    vector_learning_rate: float = 0.004
    """AdamW's full learning rate for everything else."""
    weight_decay: float = 0.02
    """Decoupled weight decay of the matrices."""
    distillation: float = 0.8
    """Weight of a student's divergence from the target until the target is finished; the rest is cross-entropy on the text."""
    student_stride: int = 3
    """Students that learn beside the target learn from every n-th window of a batch."""
    initializer_range: float = 0.06
    """Standard deviation of the initial weights."""


@dataclass(frozen=True)
class Recipe:
    """A family: one target and its students, trained side by side on the same batches."""

    output: Path = Path("runs/pocket-family")
    """Folder of the family; also where a killed training is resumed from."""
    init: Path | None = None
    """A finished family to begin with, with the recipe's sizes; its models go on as they are, but for students of its target's width:
    once that has learned on, they begin anew as some of its layers."""
    init_step: int | None = None
    """Step at which a training begun with ``init`` begins; null: once the target is finished, so that only students learn."""
    seed: int = 0
    """Seed of the initial weights and of the order of the text; who goes on with a family gives another, to read other text."""
    vocab_size: int = 2048
    """Tokens of the byte-level BPE."""
    window: int = 512
    """Training context (tokens)."""
    max_position_embeddings: int = 1024
    """Context limit written into the models (tokens)."""
    batch_rows: int = 6
    """Windows per step."""
    reasoning_share: float = 0.84
    """Share of the windows filled with generated problems while the students that are narrower than the target learn beside it; the rest
    is code and folders."""
    folders: list[Path] = field(default_factory=list)
    """Further folders of text (.py, .txt, .md, .rst), beside the standard library."""
    target: ModelSize = ModelSize(160, 12, 5, 432)
    """The target's shape."""
    students: dict[str, ModelSize] = field(
        default_factory=lambda: {
            "small": ModelSize(128, 1, 4, 352),
            "medium": ModelSize(144, 3, 4, 384),
            "large": ModelSize(160, 6, 5, 432),
        }
    )
    """The students' shapes by name, from small to large."""
    optimisation: Optimisation = Optimisation()
    """The optimiser's settings."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Type of the weights in the published files."""
    device: str = "auto"
    """Where to train: cpu, cuda or auto."""
    compile: bool = True
    """Compile the training step (needs a C++ compiler on CPU)."""
    threads: int = 2
    """CPU threads."""

    def __post_init__(self) -> None:
        for key in ("vocab_size", "window", "max_position_embeddings", "batch_rows", "checkpoint_every", "threads"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not at least 1")
        for key, size in {"target": self.target, **{f"students.{name}": size for name, size in self.students.items()}}.items():
            if least := [field.name for field in fields(size) if getattr(size, field.name) < 1]:
                raise UserError(f"{key}.{least[0]}: {getattr(size, least[0])} is not at least 1")
            if size.hidden_size % (2 * size.heads):
                raise UserError(f"{key}.heads: {size.heads} heads do not have an even share of hidden_size, {size.hidden_size}, each")
        if missing := [folder for folder in self.folders if not folder.is_dir()]:
            raise UserError(f"folders: there is no folder {missing[0]}")
        if self.init_step is not None and self.init is None:
            raise UserError("init_step: needs init, a family to begin with")
        if not 0 <= self.first_step <= self.optimisation.steps:
            raise UserError(f"init_step: {self.init_step} is not between 0 and optimisation.steps, {self.optimisation.steps}")

    @property
    def first_step(self) -> int:
        """The step with which a training begins."""
        if self.init is None:
            return 0
        return self.optimisation.steps if self.init_step is None else self.init_step

    def reasoning_share_at(self, step: int) -> float:
        """Return the share of the windows of ``step`` that are filled with generated problems."""
        if step >= self.optimisation.steps:
            return self.optimisation.last_reasoning_share
        return self.optimisation.alone_reasoning_share if step < self.optimisation.alone_steps else self.reasoning_share

    @property
    def grown(self) -> list[str]:
        """The students of the target's width, which begin as a selection of its layers."""
        alike = {name: replace(self.target, layers=size.layers) == size for name, size in self.students.items()}
        return [name for name, size in self.students.items() if alike[name] and size.layers <= self.target.layers]
