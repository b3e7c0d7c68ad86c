"""The run's own record: ``metrics.jsonl``, one object a line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dispatch_rl.runs import RunFolder, read_metrics
from dispatch_rl.tracking.base import Row

_CLOCK = ("seconds", "steps_per_second")


class LinesTracker:
    """Writes what we measure ourselves; the learner's inner life, and what has a file of its own in the folder, is left to the others.

    ``decoding/X`` and ``time/X`` are kept as ``X``, ``validation/X`` as ``validation_X``, ``arms/X`` as ``arm_shares[X]``.
    """

    title = "metrics.jsonl"

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def rewind(self, step: int) -> None:
        self._run.truncate_metrics(step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        row: dict[str, Any] = {}
        for name, value in values.items():
            section, _, key = name.partition("/")
            if section in ("decoding", "time"):
                row[key] = value
            elif section == "validation":
                row[f"validation_{key}"] = value
            elif section == "arms":
                row.setdefault("arm_shares", {})[key] = value
        if row:
            self._run.append_metrics([{"step": step, **row}])

    def summarise(self, values: Mapping[str, float]) -> None:
        pass

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        pass

    def image(self, step: int, name: str, png: bytes) -> None:
        pass

    def bundle(self, name: str, folder: Path, about: Row) -> None:
        pass

    def finish(self, failed: bool) -> None:
        pass


def told(run: RunFolder) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the steps and numbers, by ``section/metric``, of a run's record: the inverse of :meth:`LinesTracker.log`."""
    for row in read_metrics(run.metrics):
        step = row.pop("step")
        values = {f"arms/{arm}": share for arm, share in row.pop("arm_shares", {}).items()}
        for key, value in row.items():
            if key.startswith("validation_"):
                values[f"validation/{key.removeprefix('validation_')}"] = value
            else:
                values[f"{'time' if key in _CLOCK else 'decoding'}/{key}"] = value
        yield step, values
