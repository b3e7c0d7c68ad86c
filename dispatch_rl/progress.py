"""A progress bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Yield ``update(done, note="")``."""
    interval = 0.1 if sys.stderr.isatty() else 20.0
    with tqdm(total=total, desc=title, mininterval=interval, ncols=100) as bar:

        def update(done: int, note: object = "") -> None:
            if isinstance(note, str) and note:
                bar.set_postfix_str(note, refresh=False)
            bar.update(min(done, total) - bar.n)  # the last step may go a little further than asked

        yield update


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide bars and log lines of ``datasets``; the hub's own bars for downloads stay."""
    import datasets

    bars, verbosity = not datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
