"""The folder of a run: what is in it, and how it is written without ever being half-written."""

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dispatch_rl.errors import UserError, first_line

_PACKAGES = ("torch", "transformers", "gymnasium", "stable-baselines3", "numpy")


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


@dataclass(frozen=True)
class RunFolder:
    """``runs/NAME``: configuration, metrics, checkpoints, best policy, evaluation."""

    path: Path

    @classmethod
    def claim(cls, path: Path, *, overwrite: bool) -> "RunFolder":
        """Return the folder of a new run, without touching it yet.

        Raises:
            UserError: It exists and ``overwrite`` is not set, or it exists and is no run folder.
        """
        run = cls(path)
        if path.exists() and any(path.iterdir()):
            if not run.config.is_file():
                raise UserError(f"name: {path} exists and is not a run; choose another --name")
            if not overwrite:
                raise UserError(f"name: {path} exists; choose another --name or give --overwrite=true")
        return run

    def begin(self, config_yaml: str, device: str, features: Sequence[str], arms: Sequence[str], *, overwrite: bool) -> None:
        """Empty the folder and write the configuration, the command, the versions, and what policies see and choose from.

        Raises:
            UserError: Another run has taken the folder since it was claimed.
        """
        self.claim(self.path, overwrite=overwrite)
        if self.path.exists():
            shutil.rmtree(self.path)
        write_atomically(self.config, config_yaml)
        write_atomically(self.path / "command.txt", f"{shlex.join(_command())}\n")
        write_json(self.path / "environment.json", environment(device))
        write_json(self.interface, {"features": list(features), "arms": list(arms)})

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return an existing run folder.

        Raises:
            UserError: There is none, or it has no configuration.
        """
        run = cls(path)
        if not run.config.is_file():
            raise UserError(f"run: {path} is not the folder of a run; there is no {run.config.name} in it")
        return run

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def interface(self) -> Path:
        """Names of the features that the policies of the run see, and of the arms that they choose from."""
        return self.path / "interface.json"

    @property
    def best_policy(self) -> Path:
        """The policy that validated best."""
        return self.path / "best" / "policy.safetensors"

    @property
    def best_validation(self) -> Path:
        """What validation said about it, and the arm that it always chooses, if it is one of those policies."""
        return self.path / "best" / "validation.json"

    @property
    def finished(self) -> bool:
        """Whether the training has ended, its evaluation included."""
        return self._end.is_file()

    def finish(self) -> None:
        """Note that the training has ended: nothing is left for ``--resume``."""
        write_atomically(self._end, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n")

    @property
    def _end(self) -> Path:
        return self.path / "finished.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """The rows of the last evaluation in each mode."""
        return self.path / "evaluation.json"

    @property
    def evaluated(self) -> Path:
        """Which policy the rows of each mode are of, as a hash."""
        return self.path / "best" / "evaluated.json"

    @property
    def figure(self) -> Path:
        """The most telling figures in one picture."""
        return self.path / "performance_metrics.png"

    @property
    def report(self) -> Path:
        """Tables and figures in one page."""
        return self.path / "report.html"

    @property
    def tracking(self) -> Path:
        """Which W&B run belongs to this one, if any does."""
        return self.path / "tracking.json"

    @property
    def card(self) -> Path:
        """What was trained, on what, how well it does and how to use it, for people."""
        return self.path / "README.md"

    def check_interface(self, features: Sequence[str], arms: Sequence[str]) -> None:
        """Refuse policies of the run where they would see or choose something else.

        Raises:
            UserError: Naming what differs.
        """
        try:
            there = json.loads(self.interface.read_text(encoding="utf-8"))
            mine = {"features": list(features), "arms": list(arms)}
            different = [key for key, names in mine.items() if there[key] != names]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.interface}: it cannot be read, so what the run's policies choose from is not known") from error
        if different:
            raise UserError(f"{self.path}: its policies were made for other {' and '.join(different)} than this configuration's")

    def checkpoint(self, step: int) -> Path:
        """Return where the policy after ``step`` rounds is kept."""
        return self.path / "checkpoints" / f"step-{step}" / "policy.safetensors"

    @property
    def state(self) -> Path:
        """The whole state of the training at its last validation."""
        return self.path / "state"

    def truncate_metrics(self, step: int) -> None:
        """Forget the metrics of later steps than ``step``."""
        if self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            write_atomically(self.metrics, "".join(line + "\n" for line in lines if _step_of(line) <= step))

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to the metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def _step_of(line: str) -> float:
    """Return the step of a line of metrics; a line that a kill cut off is behind all steps."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_json(path: Path, otherwise: Any) -> Any:
    """Return what a JSON file holds, or ``otherwise`` if there is none.

    Raises:
        UserError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise
    except ValueError as error:
        raise UserError(f"{path}: it is damaged: {first_line(error)}; remove it to go on without it") from error


def _command() -> list[str]:
    """Return the words of the command that is running, as somebody would give it again."""
    program = Path(sys.argv[0])
    words = ["python", "-m", f"{program.parent.name}.{program.stem}"] if program.suffix == ".py" else [program.name]
    return [*words, *sys.argv[1:]]


def environment(device: str) -> dict[str, str]:
    """Return the versions and the machine that numbers depend on."""
    versions = {package: version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **versions, "device": device, "machine": platform.machine()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of metrics; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    rows = []
    for line in whole.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # cut off by a kill, and written again behind
    return [row for row in rows if isinstance(row, dict)]
