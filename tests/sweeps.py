"""Sweep files for the tests."""

from pathlib import Path
from typing import Any

import yaml

WHOLE: dict[str, Any] = {
    "program": "dispatch_rl.train",
    "method": "random",
    "metric": {"name": "validation/latency_ms_per_token", "goal": "minimize"},
    "run_cap": 4,
    "parameters": {"ppo.gamma": {"min": 0.8, "max": 1.0}, "ppo.net_arch": {"values": [[8], [64, 64]]}},
    "command": ["${env}", "${interpreter}", "-m", "${program}", "--num_envs=8", "${args}"],
}


def write(folder: Path, **changes: Any) -> Path:
    """Write the file with changes, None taking a key away, and return where it is."""
    content = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return folder / "sweep.yaml"
