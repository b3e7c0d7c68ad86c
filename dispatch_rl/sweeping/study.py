"""The runs of a sweep, in a journal that several processes share.

What is drawn for a run depends on the seed and on the run's number (with ``bayes`` on the results so far, too), never on who draws it.
A run belongs to whoever holds its lock: where it is said to be running and nobody holds the lock, its process has been killed, and
whoever comes first goes on with it.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.file import SweepFile
from dispatch_rl.sweeping.locks import FileLock
from dispatch_rl.sweeping.space import Parameter

_FIRST_RANDOM = 5
"""Runs that ``bayes`` draws at random before it has anything to go by."""
_SAME = ("method", "metric", "parameters", "early_terminate", "command", "program")
"""Keys of the file that must not change while a sweep goes on."""

ENDED = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


@dataclass
class Run:
    """A run that this process has in hand."""

    trial: Trial
    name: str
    values: dict[Parameter, Any]
    lock: FileLock
    resumed: bool
    """Whether another process had it before."""


class GridSampler(BaseSampler):
    """Gives the values of one point of a grid."""

    def __init__(self, point: Mapping[str, Any]) -> None:
        self.point = point

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is drawn together."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing is drawn together."""
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """Return the value of the point."""
        return self.point[name]


class SweepStudy:
    """All runs of a sweep.

    Args:
        sweep: The file.
        folder: Where the journal is kept; None keeps the runs in memory alone.
        seed: Of what is drawn.
        limit: Runs in all.

    Raises:
        UserError: The folder holds something else.
    """

    def __init__(self, sweep: SweepFile, folder: Path | None, seed: int, limit: int) -> None:
        self.sweep, self.seed, self.limit = sweep, seed, limit
        self.locks = None if folder is None else folder / "locks"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if folder is None or self.locks is None:
            self.study = optuna.create_study(storage=InMemoryStorage(), direction=sweep.metric.goal)
            return
        _check_folder(folder)
        self.locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self.locks / "sweep"):
            journal = folder / "journal.log"
            mend(journal)
            try:
                backend = JournalFileBackend(str(journal), FileLock(self.locks / "journal"))  # type: ignore[arg-type]
                storage = JournalStorage(backend)
                self.study = optuna.create_study(storage=storage, study_name="sweep", direction=sweep.metric.goal, load_if_exists=True)
            except (ValueError, KeyError, AssertionError) as error:
                raise UserError(f"{journal}: the journal cannot be read: {error}") from error
            self._check_same(folder)

    def _check_same(self, folder: Path) -> None:
        mine = {"seed": self.seed, **{key: self.sweep.content.get(key) for key in _SAME}}
        theirs = self.study.user_attrs.get("sweep")
        if theirs is None:
            self.study.set_user_attr("sweep", mine)
        elif different := [key for key, value in json.loads(json.dumps(mine)).items() if theirs.get(key) != value]:
            raise UserError(f"name: {folder} holds a sweep with another {' and '.join(different)}; choose another --name")

    def trials(self) -> list[FrozenTrial]:
        """Return what the journal says of all runs, in the order of their numbers."""
        return self.study.get_trials(deepcopy=False)

    def is_over(self) -> bool:
        """Return whether all runs have ended and no more are to come."""
        trials = self.trials()
        return self._enough(trials) and all(trial.state.is_finished() for trial in trials)

    def _enough(self, trials: Sequence[FrozenTrial]) -> bool:
        metric = self.sweep.metric
        return len(trials) >= self.limit or any(metric.reached(value) for trial in trials for value in trial.intermediate_values.values())

    def claim(self) -> Run | None:
        """Return a run that this process is to see to, or None if there is none for now.

        The first run goes ahead alone until it has validated, since it may have to record and to measure what the others then find.
        """
        assert self.locks is not None
        with FileLock(self.locks / "sweep"):
            trials = self.trials()
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            for trial in running:
                lock = self._lock(trial.number)
                if lock.acquire(wait=False):
                    return self._run(Trial(self.study, trial._trial_id), lock, resumed=True)
            if self._enough(trials) or (running and not any(trial.intermediate_values for trial in trials)):
                return None
            drawn = self.draw()
            lock = self._lock(drawn.number)
            lock.acquire()
            return self._run(drawn, lock, resumed=False)

    def draw(self) -> Trial:
        """Return the next run."""
        self.study.sampler = self._sampler(len(self.trials()))
        searched = {parameter.name: parameter.distribution() for parameter in self.sweep.parameters if not parameter.is_constant}
        return self.study.ask(searched)

    def _sampler(self, number: int) -> BaseSampler:
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.sweep.method == "random":
            return RandomSampler(seed)
        if self.sweep.method == "bayes":
            return TPESampler(n_startup_trials=_FIRST_RANDOM, seed=seed)
        searched = [parameter for parameter in self.sweep.parameters if not parameter.is_constant]
        points = itertools.product(*([json.dumps(value) for value in parameter.grid() or ()] for parameter in searched))
        point = next(itertools.islice(points, number, None))
        return GridSampler({parameter.name: value for parameter, value in zip(searched, point, strict=True)})

    def values(self, trial: Trial | FrozenTrial) -> dict[Parameter, Any]:
        """Return the values of the parameters in a run."""
        return {parameter: parameter.value(trial.params.get(parameter.name)) for parameter in self.sweep.parameters}

    def _lock(self, number: int) -> FileLock:
        assert self.locks is not None
        return FileLock(self.locks / run_name(number))

    def _run(self, trial: Trial, lock: FileLock, resumed: bool) -> Run:
        return Run(trial, run_name(trial.number), self.values(trial), lock, resumed)

    def report(self, run: Run, values: Sequence[float]) -> None:
        """Write down the validations of a run that are new."""
        known = self.trials()[run.trial.number].intermediate_values
        for step, value in enumerate(values, 1):
            if step not in known:
                run.trial.report(value, step)

    def stops(self, run: Run, values: Sequence[float], seen: int) -> bool:
        """Return whether a run with these validations, of which ``seen`` are known from before, is to be stopped early."""
        rule, sign = self.sweep.stopping, self.sweep.metric.sign
        if rule is None:
            return False
        others = [history(trial) for trial in self.trials() if trial.number != run.trial.number]
        return rule.stops([sign * value for value in values], [[sign * value for value in other] for other in others], seen)

    def best(self, values: Sequence[float]) -> float:
        """Return the best of some values of the metric."""
        return min(values) if self.sweep.metric.goal == "minimize" else max(values)

    def tell(self, run: Run, state: TrialState, values: Sequence[float]) -> None:
        """Write down how a run has ended and let go of it."""
        self.study.tell(run.trial, self.best(values) if state == TrialState.COMPLETE else None, state)
        run.lock.release()


def command_of(sweep: SweepFile, number: int, values: dict[Parameter, Any], folder: Path, track: str | None) -> list[str]:
    """Return the command of a run: as an agent of W&B writes it, and behind it where the run goes and who follows it."""
    return [*sweep.words(values), f"--runs={folder}", f"--name={run_name(number)}", f"--track={track}"]


def run_name(number: int) -> str:
    """Return the name of a run."""
    return f"run-{number:03}"


def history(trial: FrozenTrial) -> list[float]:
    """Return the validations of a run, in their order."""
    return [value for _, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)]


def mend(journal: Path) -> None:
    """Cut off a last line that a killed machine left unfinished: it would spoil the line that is written behind it."""
    if not journal.is_file():
        return
    with FileLock(journal.parent / "locks" / "journal"), journal.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "locks").is_dir():
        raise UserError(f"name: {folder} exists and is not the folder of a sweep; choose another --name")
