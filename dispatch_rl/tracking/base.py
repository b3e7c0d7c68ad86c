"""What every tracker does, and many trackers as one."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from dispatch_rl.errors import first_line

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Keeps what a run tells about itself. Names are ``section/metric``; a step is a number of rounds learned from."""

    title: str
    """What it is called in a warning."""

    def rewind(self, step: int) -> None:
        """Forget what was told about later steps than ``step``; called once, before anything else. A new run begins behind step -1."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep some numbers."""

    def summarise(self, values: Mapping[str, float]) -> None:
        """Keep what the run comes to, where it is not the last number of that name."""

    def table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        """Keep a table whose rows have the same keys, or fewer."""

    def image(self, step: int, name: str, png: bytes) -> None:
        """Keep a picture."""

    def bundle(self, name: str, folder: Path, about: Row) -> None:
        """Keep a copy of the files of a trained policy."""

    def finish(self, failed: bool) -> None:
        """Write what is not written yet; the last call."""


class Tracking:
    """Several trackers as one; a context that finishes them.

    Args:
        own: The run's own record; what it raises is raised.
        others: Conveniences; one that raises is told nothing more, with a warning, and the run goes on.
    """

    def __init__(self, own: Tracker, others: Sequence[Tracker] = ()) -> None:
        self._own = own
        self._others = list(others)
        self._failed: list[Tracker] = []
        self._step = 0

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        failed = list(self._failed)
        self._each(lambda tracker: tracker.finish(kind is not None))
        for tracker in failed:
            with suppress(Exception):  # the warning has been given
                tracker.finish(True)

    def rewind(self, step: int) -> None:
        """Go on behind ``step``; -1 begins anew."""
        self._step = max(step, 0)
        self._each(lambda tracker: tracker.rewind(step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep some numbers, by ``section/metric``."""
        self._step = step
        self._each(lambda tracker: tracker.log(step, values))

    def summarise(self, values: Mapping[str, float]) -> None:
        """Keep what the run comes to, by the metric that it is the best or the last of."""
        self._each(lambda tracker: tracker.summarise(values))

    def table(self, name: str, rows: Sequence[Row]) -> None:
        """Keep a table."""
        self._each(lambda tracker: tracker.table(self._step, name, rows))

    def image(self, name: str, png: bytes) -> None:
        """Keep a picture."""
        self._each(lambda tracker: tracker.image(self._step, name, png))

    def bundle(self, name: str, folder: Path, about: Row) -> None:
        """Keep the files of a trained policy."""
        self._each(lambda tracker: tracker.bundle(name, folder, about))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        act(self._own)
        for tracker in list(self._others):
            try:
                act(tracker)
            except Exception as error:  # whatever another package raises: following a run is worth less than the run
                self._others.remove(tracker)
                self._failed.append(tracker)
                sys.stderr.write(f"warning: {tracker.title} fails and is left out from here on: {first_line(error)}\n")
