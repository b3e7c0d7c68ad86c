"""The trackers that a configuration asks for."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dispatch_rl.config import TrainConfig
from dispatch_rl.runs import RunFolder
from dispatch_rl.tracking import weights_and_biases
from dispatch_rl.tracking.base import Tracker, Tracking
from dispatch_rl.tracking.lines import LinesTracker
from dispatch_rl.tracking.tensorboard import TensorBoardTracker


def open_tracking(run: RunFolder, config: TrainConfig) -> Tracking:
    """Return what follows a run: JSON lines always, TensorBoard and W&B as configured. A resumed run goes on as the same W&B run."""
    others: list[Tracker] = []
    if config.tracking.tensorboard:
        others.append(TensorBoardTracker(run.path / "tensorboard" / config.algorithm))
    mode = weights_and_biases.wanted_mode(config.tracking) if config.track == "wandb" else "off"
    if mode != "off":
        try:
            others.append(weights_and_biases.begin(run, config.name, config.tracking, flat(asdict(config)), mode))
        except Exception as error:  # a broken installation, a folder that cannot be written, whatever wandb may raise
            sys.stderr.write(f"warning: W&B cannot begin and is left out: {' '.join(str(error).split())[:200]}\n")
    return Tracking(LinesTracker(run), others)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections by dotted key, as options are written; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value) if isinstance(value, Path) else value
    return found
