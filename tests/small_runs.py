"""Trainings that take a second or two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispatch_rl import selection, train
from dispatch_rl.policies.network import NetworkPolicy

ROOT = Path(__file__).resolve().parents[1]
SMALL_PPO = ["--num_envs=8", "--ppo.total_steps=512", "--ppo.rollout_steps=128", "--ppo.batch_size=64", "--ppo.n_epochs=2"]
SHORT = ["--prompts.max_new_tokens=24", "--evaluation.prompts=3", "--validate_every=128"]
SMALL_DATA = ["train_prompts=12", "validation_prompts=4", "test_prompts=4", "shard_size=8", "max_draft_length=8"]
DATA = [*(f"--recording.{value}" for value in SMALL_DATA), "--profiling.rounds=100", "--profiling.longest_context=128"]


def arguments(home: Path, name: str, *options: str) -> list[str]:
    """Return the arguments of a training on replay whose folder is ``home/runs/name``."""
    places = [f"--runs={home}/runs", f"--replay.cache={home}/traces", f"--name={name}"]
    return [f"--config={ROOT}/configs/pocket.yaml", *places, *SHORT, *DATA, *options]


def start(home: Path, name: str, *options: str) -> Path:
    """Train on replay and return the run's folder."""
    train.main(arguments(home, name, *options))
    return home / "runs" / name


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def killed_at_validation(number: int, training: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a training until it has validated ``number`` times and wants to again."""
    consider = selection.Selection.consider
    done: list[float] = []

    def killed(self: selection.Selection, step: int, policy: NetworkPolicy) -> float:
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(consider(self, step, policy))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(selection.Selection, "consider", killed)
        with pytest.raises(KeyboardInterrupt):
            training()
