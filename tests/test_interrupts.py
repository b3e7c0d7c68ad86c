"""Signals wait where code of others must not be left in the middle."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dispatch_rl.tracking.interrupts import undisturbed
from dispatch_rl.tracking.tensorboard import TensorBoardTracker


class Stopped(BaseException):
    """What the handler of these tests raises."""


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    """Let SIGTERM raise, as ``cli.run`` does, and Ctrl-C, which processes in the background may ignore."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    handlers = {signal.SIGTERM: stop, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_for_the_end_of_the_block(number: int, raised: type[BaseException]) -> None:
    """Then it does what it would have done, once, and the next one does so at once."""
    done = []

    @undisturbed()
    def block() -> None:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        done.append("all")

    with pytest.raises(raised):
        block()
    assert done == ["all"]
    with pytest.raises(raised):
        os.kill(os.getpid(), number)


def test_other_threads_are_not_concerned() -> None:
    """They cannot have handlers, and need none."""

    def block() -> str:
        with undisturbed():
            return "all"

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(block).result() == "all"


def test_tensorboard_is_not_left_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that arrives while numbers are handed over is raised behind them; the writer can be closed, and holds them all."""
    tracker = TensorBoardTracker(tmp_path)
    add_scalar, told = tracker._writer.add_scalar, list[str]()

    def interrupted(name: str, value: float, step: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        told.append(name)
        add_scalar(name, value, step)

    monkeypatch.setattr(tracker._writer, "add_scalar", interrupted)
    with pytest.raises(Stopped):
        tracker.log(1, {"a": 1.0, "b": 2.0})
    assert told == ["a", "b"]
    tracker.finish(True)
