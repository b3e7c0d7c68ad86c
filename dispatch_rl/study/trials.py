"""The policies of a study, each trained once and kept."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dispatch_rl import __version__
from dispatch_rl.config import TrainConfig
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.fingerprint import digest
from dispatch_rl.runs import RunFolder
from dispatch_rl.selection import Selection
from dispatch_rl.study.data import Data
from dispatch_rl.teaching import learn_on_replay
from dispatch_rl.tracking.base import Tracking
from dispatch_rl.tracking.lines import LinesTracker
from dispatch_rl.validation import ReplayValidation


@dataclass(frozen=True)
class Trial:
    """One policy to be trained."""

    about: str
    """What it is, for people and file names."""
    config: TrainConfig
    """Who learns, with which seed."""
    data: Data
    """From what."""
    folder: Path
    """Folder of the study."""

    @property
    def name(self) -> str:
        """A name that no other trial has, but for those that would give the same policy."""
        config = self.config
        own = asdict(getattr(config, config.algorithm))
        settings = [config.algorithm, config.seed, own, asdict(config.reward), config.num_envs, config.validation_interval]
        return f"{self.about}-{config.algorithm}-seed{config.seed}-{digest([__version__, settings, self.data.settings()])[:8]}"

    @property
    def path(self) -> Path:
        """Where the finished policy is."""
        return self.folder / "policies" / f"{self.name}.safetensors"

    @property
    def done(self) -> bool:
        """Whether it is trained."""
        return self.path.is_file()

    def policy(self) -> NetworkPolicy:
        """Return the finished policy."""
        return NetworkPolicy.load(self.path)

    def train(self, update: Callable[[int, str], None]) -> None:
        """Train the policy, or go on with it, and keep it with the metrics of its training."""
        run = RunFolder(self.folder / "training" / self.name)
        run.path.mkdir(parents=True, exist_ok=True)
        selection = Selection(run, Tracking(LinesTracker(run)), ReplayValidation(self.data.world("validation")))
        learn_on_replay(self.config, self.data.world("train"), selection, update)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if run.metrics.is_file():  # a kill may have struck right behind this move
            run.metrics.replace(self.path.with_suffix(".jsonl"))
        run.best_policy.replace(self.path)
        shutil.rmtree(run.path)
