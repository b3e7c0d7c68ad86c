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
            bar.update(done - bar.n)

        yield update
