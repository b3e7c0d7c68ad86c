"""Trainings side by side, each in a process of its own."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing import connection
from threading import Thread
from time import sleep

from dispatch_rl.errors import UserError
from dispatch_rl.progress import progress_bar
from dispatch_rl.study.trials import Trial


def train_all(trials: Sequence[Trial], workers: int, threads: int) -> None:
    """Train what is not trained yet.

    Args:
        trials: Policies; equal ones are trained once.
        workers: Trainings at a time; one is done in this process.
        threads: Of torch, in each of the others.

    Raises:
        UserError: A training failed; what went wrong has been printed.
    """
    missing = list({trial.name: trial for trial in trials if not trial.done}.values())
    if not missing:
        return
    with progress_bar("training policies", len(missing)) as update:
        if workers == 1:
            for done, trial in enumerate(missing):
                trial.train(lambda step, note, d=done, t=trial: update(d, f"{t.about} {t.config.algorithm}"))  # type: ignore[misc]
                update(done + 1)
            return
        _side_by_side(missing, min(workers, len(missing)), threads, update)


def _side_by_side(trials: Sequence[Trial], workers: int, threads: int, update: Callable[..., None]) -> None:
    context = multiprocessing.get_context("spawn")
    # Equal trainings lie side by side, so every other one of them makes equal shares.
    crew = [context.Process(target=_work, args=(trials[first::workers], threads), daemon=True) for first in range(workers)]
    try:
        for worker in crew:
            worker.start()
        while any(worker.is_alive() for worker in crew):
            sleep(0.2)
            update(sum(trial.done for trial in trials))
            if failed := [worker for worker in crew if worker.exitcode]:
                raise UserError(f"study: a training failed with status {failed[0].exitcode}; what it said is above")
    finally:
        for worker in crew:
            worker.terminate()
            worker.join()


def _work(trials: Sequence[Trial], threads: int) -> None:
    """Train one after the other."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        for trial in trials:
            trial.train(lambda step, note: None)
    except UserError as error:
        sys.stderr.write(f"error: {trial.name}: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _end_with_parent() -> None:
    """End this process when the study's is killed, lest two of them train the same policy later."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
