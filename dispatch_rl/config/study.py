"""A study: many trainings and comparisons under the same conditions. Imports nothing heavy."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from dispatch_rl.config.training import Algorithm, TrainConfig
from dispatch_rl.errors import UserError

Section = Literal["policies", "students", "features", "arms", "transfer", "adaptation", "regret", "bound"]


@dataclass(frozen=True)
class StudySection:
    """What is trained and compared."""

    sections: list[Section] = field(default_factory=lambda: list(get_args(Section)))
    """policies: everybody on the same texts; students: the students alone with one draft length; features and arms: what each group of
    them is worth; transfer: trained on one thing, tested on another; adaptation: the same with fixed arms to fall back on; regret: where
    time is lost against the oracle; bound: what is possible with all that is known before drafting, the target's hidden state included."""
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    """Temperatures of the policies' comparison. sampling.temperature, at which the rest is studied, must be one of them."""
    learners: list[str] = field(default_factory=lambda: ["ppo", "dqn", "policy_iteration"])
    """Who learns: values of algo."""
    seeds: int = 5
    """Trainings of each learner at each temperature; a learner's value is the mean over them."""
    learner: str = "policy_iteration"
    """Who learns in the other sections."""
    further_seeds: int = 2
    """Trainings of each of their conditions, at most `seeds`."""
    other_profile: Path | None = None
    """Latency profile (JSON) of another machine, as a table written by hand, to train with and test with here; null leaves that out."""
    bound_texts: int = 1_536
    """Training texts of the bound; it is also made with recording.train_prompts of them and with a quarter of those. Needs the models, so
    with replay.traces there is none."""
    workers: int = 1
    """Trainings side by side, each in a process of its own. Nothing is timed meanwhile."""

    def __post_init__(self) -> None:
        if not self.sections:
            raise UserError("study.sections: the list is empty")
        for key, values in (("temperatures", self.temperatures), ("learners", self.learners), ("sections", self.sections)):
            if len(set(values)) < len(values):
                raise UserError(f"study.{key}: {values} names one twice")
        if not self.temperatures or not all(0 <= temperature < float("inf") for temperature in self.temperatures):
            raise UserError(f"study.temperatures: {self.temperatures} must be finite numbers of at least 0, one or more")
        known = get_args(Algorithm)
        for key, names in (("learners", self.learners), ("learner", [self.learner])):
            if unknown := [name for name in names if name not in known]:
                raise UserError(f"study.{key}: there is no '{unknown[0]}'; there are {', '.join(known)}")
        for key in ("seeds", "further_seeds", "bound_texts", "workers"):
            if getattr(self, key) < 1:
                raise UserError(f"study.{key}: {getattr(self, key)} is not at least 1")
        if self.further_seeds > self.seeds:
            raise UserError(f"study.further_seeds: {self.further_seeds} is more than study.seeds, {self.seeds}")
        if self.other_profile is not None and not self.other_profile.is_file():
            raise UserError(f"study.other_profile: there is no file {self.other_profile}")


@dataclass(frozen=True)
class StudyConfig(TrainConfig):
    """A study; every key of a training run is understood and holds for each training. Its folder is STUDIES/NAME."""

    study: StudySection = StudySection()
    """What is trained and compared."""
    studies: Path = Path("studies")
    """Folder of all studies."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.live:
            raise UserError("env: a study trains on replay; leave out --env live")
        if self.init is not None:
            raise UserError("init: a study trains from the beginning; leave it out")
        if self.sampling.temperature not in self.study.temperatures:
            raise UserError(f"sampling.temperature: {self.sampling.temperature} is not among study.temperatures, {self.study.temperatures}")
        if self.replay.traces is not None and len(self.study.temperatures) > 1:
            raise UserError("replay.traces: a recording has one temperature, so study.temperatures must name just that one")

    def taught_by(self, learner: str, seed: int) -> "StudyConfig":
        """Return the same with another learner and seed.

        Raises:
            UserError: A setting does not fit the learner.
        """
        return replace(self, algo=learner, seed=seed)  # type: ignore[arg-type]

    def at(self, temperature: float) -> "StudyConfig":
        """Return the same at another temperature."""
        return replace(self, sampling=replace(self.sampling, temperature=temperature))
