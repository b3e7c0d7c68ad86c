"""Where a run can be followed. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal

from dispatch_rl.errors import UserError


@dataclass(frozen=True)
class TrackingConfig:
    """Following a run. What is left null is what W&B's own environment variables say."""

    tensorboard: bool = True
    """Write events for TensorBoard to the run's folder."""
    mode: Literal["online", "offline", "off"] | None = None
    """How --track wandb works; null means what WANDB_MODE says, else online. Without a key, or with a host that does not answer, a run is
    kept offline, for `wandb sync`."""
    project: str | None = None
    """W&B project; null means WANDB_PROJECT, else dispatch-rl."""
    entity: str | None = None
    """W&B user or team; null means WANDB_ENTITY, else the key's own."""
    group: str | None = None
    """W&B group of runs that belong together; null means WANDB_RUN_GROUP."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    init_timeout_s: float = 4.0
    """Seconds after which a W&B host that does not answer is given up, and the run kept offline."""
    finish_timeout_s: float = 7.0
    """Seconds that uploads may still take at the end; the rest stays in the run's folder for `wandb sync`."""

    def __post_init__(self) -> None:
        for key in ("init_timeout_s", "finish_timeout_s"):
            if not getattr(self, key) > 0:
                raise UserError(f"tracking.{key}: {getattr(self, key)} is not above 0")
        if not all(0 < len(tag) <= 64 for tag in self.tags):
            raise UserError(f"tracking.tags: {self.tags} has a tag that is empty or longer than 64 characters")
