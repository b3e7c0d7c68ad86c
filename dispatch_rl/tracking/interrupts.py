"""Signals that wait until it is safe to be interrupted."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_INTERRUPTS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block.

    For code that shares locks and queues with threads of its own: an exception out of a signal's handler, raised where it holds a lock,
    would leave that locked, and whoever joins the thread later would wait for ever. Signals reach the main thread only; elsewhere this
    does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    before = {number: signal.signal(number, lambda number, frame: arrived.append((number, frame))) for number in _INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            first, frame = arrived[0]
            handler = before[signal.Signals(first)]
            if callable(handler):
                handler(first, frame)
            else:
                os.kill(os.getpid(), first)
