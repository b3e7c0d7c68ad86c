"""One run of a sweep at work: a training in a process of its own."""

import math
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from dispatch_rl.runs import read_metrics
from dispatch_rl.sweeping.command import parts
from dispatch_rl.sweeping.study import Run

_GRACE_SECONDS = 30.0
"""How long a training that is told to end may take to close what it has open."""


class Job:
    """A training that is under way.

    Args:
        run: What is trained.
        words: Its command.
        folder: Of the sweep. The run's folder and its log are in it, side by side: a run begins by emptying its folder.
    """

    def __init__(self, run: Run, words: Sequence[str], folder: Path) -> None:
        self.run = run
        self.path = folder / run.name
        self.log = folder / f"{run.name}.log"
        self.stopped_early = False
        self.seen = 0
        """Validations at the last look."""
        self.process = self._start(words)

    def _start(self, words: Sequence[str]) -> "subprocess.Popen[bytes]":
        if (self.path / "config.yaml").is_file():
            words = [*parts(words)[0], f"--resume={self.path}"]
        elif self.path.exists():
            shutil.rmtree(self.path)  # killed before it had begun
        environment = {key: value for key, value in os.environ.items() if key not in ("WANDB_SWEEP_ID", "WANDB_RUN_ID")}
        assert self.run.lock.descriptor is not None
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(words)}\n")
            log.flush()
            # In a group of its own, so that Ctrl-C reaches it once, from here. It holds the run's lock as long as it lives: if this
            # process is killed, nobody else begins the run while the training goes on.
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self.run.lock.descriptor,),
                process_group=0,
            )

    def validations(self, key: str) -> list[float]:
        """Return the values of a metric so far."""
        rows = read_metrics(self.path / "metrics.jsonl")
        values = [row[key] for row in rows if key in row]
        return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]

    def keys(self) -> list[str]:
        """Return the metrics that the training has written."""
        return sorted({key for row in read_metrics(self.path / "metrics.jsonl") for key in row})

    def end(self) -> None:
        """Ask the training to end."""
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        """Wait for the training to end, and kill it when it takes too long."""
        deadline = monotonic() + _GRACE_SECONDS
        try:
            self.process.wait(max(deadline - monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def last_words(self) -> str:
        """Return the last line of the log."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""
