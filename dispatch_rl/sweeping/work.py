"""Sees to the runs of a sweep until there are no more."""

from collections.abc import Sequence
from pathlib import Path
from time import sleep

from optuna.trial import TrialState

from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.jobs import Job
from dispatch_rl.sweeping.study import ENDED, SweepStudy, command_of, run_name

_POLL_SECONDS = 0.2


class Worker:
    """One process that works on a sweep, beside others or alone.

    Args:
        study: The runs.
        folder: Of the sweep.
        workers: Runs at a time.
        track: Who follows the runs.
    """

    def __init__(self, study: SweepStudy, folder: Path, workers: int, track: str | None) -> None:
        self.study, self.folder, self.workers, self.track = study, folder, workers, track
        self.metric = study.sweep.metric
        self.jobs: list[Job] = []
        self._waiting = ""

    def work(self) -> None:
        """Run what is to be run. However this ends, no training goes on behind it; what was cut short is resumed the next time.

        Raises:
            UserError: The metric is not one that trainings write.
        """
        try:
            while self.jobs or not self.study.is_over():
                self._take()
                for job in list(self.jobs):
                    self._look_at(job)
                sleep(_POLL_SECONDS)
        finally:
            for job in self.jobs:
                job.end()
            for job in self.jobs:
                job.wait()

    def _take(self) -> None:
        while len(self.jobs) < self.workers and (run := self.study.claim()):
            words = command_of(self.study.sweep, run.trial.number, run.values, self.folder, self.track)
            job = Job(run, words, self.folder)
            self.jobs.append(job)
            chosen = " ".join(f"{p.name}={value}" for p, value in run.values.items() if not p.is_constant)
            print(f"{run.name} {'goes on' if run.resumed else 'begins'}: {chosen}", flush=True)
        if not self.jobs:
            self._say_who_is_waited_for()

    def _say_who_is_waited_for(self) -> None:
        running = [run_name(trial.number) for trial in self.study.trials() if trial.state == TrialState.RUNNING]
        said = f"waiting for {', '.join(running)}, in the hands of another process" if running else ""
        if said and said != self._waiting:
            print(said, flush=True)
        self._waiting = said

    def _look_at(self, job: Job) -> None:
        status = job.process.poll()  # before the metrics are read, so that none are missed
        values = job.validations(self.metric.key)
        self.study.report(job.run, values)
        if status is None:
            if not job.stopped_early and self.study.stops(job.run, values, job.seen):
                job.stopped_early = True
                job.end()
                job.wait()
            job.seen = len(values)
            return
        self.jobs.remove(job)
        if job.stopped_early and status:
            self._tell(job, TrialState.PRUNED, values, f"after {len(values)} validations")
        elif status:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self._tell(job, TrialState.FAIL, values, f"with {how}: {job.last_words()}; its log is {job.log}")
        elif values:
            self._tell(job, TrialState.COMPLETE, values, f"{self.study.best(values):.6g}")
        else:
            self._tell(job, TrialState.FAIL, values, f"without a {self.metric.name}")
            where = f"{self.study.sweep.path}: metric.name: trainings write no {self.metric.name}"
            raise UserError(f"{where}; {job.path / 'metrics.jsonl'} has {', '.join(job.keys()) or 'nothing'}")

    def _tell(self, job: Job, state: TrialState, values: Sequence[float], how: str) -> None:
        self.study.tell(job.run, state, values)
        ended = sum(trial.state.is_finished() for trial in self.study.trials())
        print(f"{job.run.name} {ENDED[state]} {how}  [{ended}/{self.study.limit}]", flush=True)
