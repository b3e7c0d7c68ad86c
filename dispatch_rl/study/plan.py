"""What a study consists of: under which conditions which learners are trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dispatch_rl import __version__
from dispatch_rl.config.decoding import DRAFT_LENGTH
from dispatch_rl.config.study import StudyConfig
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.replay.fingerprint import digest
from dispatch_rl.replay.tuning import best_fixed
from dispatch_rl.runs import write_json
from dispatch_rl.study.data import Data
from dispatch_rl.study.informed import InformedTrial
from dispatch_rl.study.trials import Trial

Row = dict[str, Any]

FEATURE_GROUPS = {
    "target's entropy": ("entropy", "entropy_mean", "top1_probability", "margin"),
    "acceptance so far": ("accepted_fraction", "acceptance_"),
    "lags": ("lag_",),
    "hindsight": ("right_",),
    "prompt lookup's match": ("lookup_match",),
    "position": ("position",),
}
"""Features by name, or by how the name begins if that ends with an underscore."""
EVERYTHING = "everything"


@dataclass(frozen=True)
class Study:
    """A study whose texts are recorded."""

    config: StudyConfig
    folder: Path
    data: Mapping[float, Data]
    """By temperature."""
    more: Mapping[float, Data]
    """The same with as many texts as the informed bound is trained on; empty without one."""

    @property
    def base(self) -> Data:
        """Where everything but the comparison of the policies is studied."""
        return self.data[self.config.sampling.temperature]

    def trials(self, data: Data, about: str, learner: str | None = None, seeds: int | None = None) -> list[Trial]:
        """Return one trial per seed; None means the learner and number of seeds of the further sections."""
        config = self.config.at(data.temperature)
        learner, count = learner or config.study.learner, seeds or config.study.further_seeds
        about = f"T{data.temperature:g}-{about}" if about else f"T{data.temperature:g}"
        return [Trial(about, config.taught_by(learner, config.seed + seed), data, self.folder) for seed in range(count)]

    def main_trials(self, data: Data, learner: str) -> list[Trial]:
        """Return the trials of one learner in the comparison of the policies."""
        return self.trials(data, "", learner, self.config.study.seeds)

    def full(self) -> list[Trial]:
        """Return the trials that see and may do everything, as many as there are of each condition."""
        return self.trials(self.base, "")

    def without_features(self) -> dict[str, tuple[tuple[str, ...], list[Trial]]]:
        """Return the features of every group and the trials that do not see them."""
        names = [feature.name for feature in self.base.world("test").features]
        groups = feature_groups(names)
        return {
            group: (hidden, self.trials(replace(self.base, hidden=hidden), f"without-{_slug(group)}")) for group, hidden in groups.items()
        }

    def arm_sets(self) -> dict[str, list[Trial]]:
        """Return the trials with fewer arms, from few to all, as far as they differ."""
        arms = self.base.arms
        sets = {
            "plain": tuple(arm for arm in arms if not arm.watches),
            "plain and stopping": tuple(arm for arm in arms if arm.hedge_below is None),
        }
        found = {name: chosen for name, chosen in sets.items() if 1 < len(chosen) < len(arms)}
        if len(set(found.values())) < len(found):
            found.popitem()
        fewer = {name: self.trials(replace(self.base, arms=chosen), _slug(name)) for name, chosen in found.items()}
        return {**fewer, "all": self.full()}

    def by_kind(self) -> dict[str, list[Trial]]:
        """Return the trials that learn from one kind of text, and those that learn from all; empty if there is only one kind."""
        kinds = self.base.kinds_there()
        if len(kinds) < 2:
            return {}
        single = {kind: self.trials(replace(self.base, kinds=(kind,)), _slug(kind)) for kind in kinds}
        return {**single, "both" if len(kinds) == 2 else "all": self.full()}

    def elsewhere(self) -> Data | None:
        """Return the same texts with the other machine's latencies."""
        path = self.config.study.other_profile
        return None if path is None else self.base.with_profile(path)

    def informed(self, data: Data) -> list[InformedTrial]:
        """Return the trials that know more than a policy can, from few texts to many."""
        if data.temperature not in self.more:
            return []
        more = self.more[data.temperature]
        usual, most = data.num_training_texts(), more.num_training_texts()
        config = self.config.at(data.temperature).taught_by("policy_iteration", self.config.seed)
        counts = sorted({count for count in (usual // 4, usual, most) if count})
        about = f"T{data.temperature:g}-informed"
        return [InformedTrial(f"{about}-{count}", config, replace(more, texts=count), self.folder) for count in counts]

    def students_only(self, data: Data) -> Data:
        """Return the students alone, with the one draft length of the plain arms at which one of them is fastest on validation texts."""
        students = data.load("test").students
        plain = {arm.length for arm in data.arms if arm.student in students and not arm.watches}
        lengths = sorted(plain or {self.config.draft_length or DRAFT_LENGTH})
        arms = tuple(Arm(student, length) for length in lengths for student in students)
        best = arms[best_fixed(replace(data, arms=arms).world("validation"))]
        return replace(data, arms=tuple(arm for arm in arms if arm.length == best.length))

    def student_trials(self, students: Data) -> list[Trial]:
        """Return the trials that choose only a student, of what :meth:`students_only` found."""
        return self.trials(students, "students")

    def all_trials(self) -> Iterator[Trial]:
        """Yield everything that must be trained; some may come twice."""
        wanted = self.config.study.sections
        if "policies" in wanted:
            for data in self.data.values():
                for learner in self.config.study.learners:
                    yield from self.main_trials(data, learner)
        moved = bool({"transfer", "adaptation"} & {*wanted})
        if moved or {"features", "arms"} & {*wanted}:
            yield from self.full()
        if moved or {"regret", "bound"} & {*wanted}:
            for data in self.data.values():
                yield from self.trials(data, "")
        if "bound" in wanted:
            for data in self.data.values():
                yield from self.informed(data)
        if "students" in wanted:
            for data in self.data.values():
                yield from self.student_trials(self.students_only(data))
        groups: list[Sequence[Trial]] = []
        if "features" in wanted:
            groups += [trials for _, trials in self.without_features().values()]
        if "arms" in wanted:
            groups += self.arm_sets().values()
        if moved:
            groups += self.by_kind().values()
            if (elsewhere := self.elsewhere()) is not None:
                groups.append(self.trials(elsewhere, "elsewhere"))
        for group in groups:
            yield from group

    def kept(self, name: str, depends_on: Any, make: Callable[[], list[Row]]) -> list[Row]:
        """Return rows that were made before from the same things, or make and keep them."""
        import json

        path = self.folder / "pieces" / f"{name}-{digest([__version__, depends_on])[:8]}.json"
        if path.is_file():
            print(f"kept: {name}", flush=True)
            rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
            return rows
        rows = make()
        write_json(path, rows)
        print(f"made: {name}", flush=True)
        return rows


def feature_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return which of the features are in every group; one that is in none has its own. Groups without any are left out."""
    found: dict[str, list[str]] = {group: [] for group in FEATURE_GROUPS}
    for name in names:
        found.setdefault(next((group for group, members in FEATURE_GROUPS.items() if _among(name, members)), name), []).append(name)
    return {**{group: tuple(members) for group, members in found.items() if members}, EVERYTHING: tuple(names)}


def _among(name: str, members: Sequence[str]) -> bool:
    return any(name == member or (member.endswith("_") and name.startswith(member)) for member in members)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
