"""What ``wandb agent`` tells the runs that it starts. Imports nothing heavy."""

import os
from collections.abc import Mapping


def run_name(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of a run: NAME, or NAME-ID when an agent of W&B started it, so that every run of a sweep has a folder."""
    run_id = environment.get("WANDB_RUN_ID")
    return f"{name}-{run_id}" if run_id and environment.get("WANDB_SWEEP_ID") else name
