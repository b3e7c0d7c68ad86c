"""Everybody on the same texts, in replay and live."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from types import MappingProxyType

import numpy as np

from dispatch_rl.comparison import Comparison
from dispatch_rl.contest import Task, check_decodable, compare_live
from dispatch_rl.contestants import BEST_FIXED, BEST_PLAIN, BEST_STOPPING, THRESHOLD, TUNED, contestants
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.progress import progress_bar
from dispatch_rl.study.data import Data
from dispatch_rl.study.measuring import Row, compared, policies_of, ratio
from dispatch_rl.study.plan import Study
from dispatch_rl.study.trials import Trial

BASELINES = (BEST_PLAIN, BEST_STOPPING, BEST_FIXED, THRESHOLD, TUNED, "UCB1", "LinUCB")
RIVALS = (BEST_PLAIN, BEST_STOPPING, BEST_FIXED, THRESHOLD)
"""Whom learners are measured against, in pairs."""


def policy_rows(study: Study, family: Family | None) -> list[Row]:
    """Return, for every temperature, the rows of all policies and bounds and the ratios of the learners to their rivals."""
    found: list[Row] = []
    for data in study.data.values():
        learners = {learner: study.main_trials(data, learner) for learner in study.config.study.learners}
        found += _rows(study, "policies", data, learners, family, partial(baselines, study, data), RIVALS)
    return found


def student_rows(study: Study, family: Family | None) -> list[Row]:
    """Return the same for a choice among the students alone, whose only question is who drafts."""
    found: list[Row] = []
    for data in study.data.values():
        students = study.students_only(data)
        always = {f"always {arm.name}": FixedPolicy(action) for action, arm in enumerate(students.arms)}
        rivals = (f"always {students.arms[-1].name}", THRESHOLD)
        learners = {study.config.study.learner: study.student_trials(students)}
        found += _rows(study, "students", students, learners, family, partial(baselines, study, students, always), rivals)
    return found


def baselines(study: Study, data: Data, further: Mapping[str, Policy] = MappingProxyType({})) -> dict[str, Policy]:
    """Return fresh baselines, tuned on the validation texts, behind ``further`` ones."""
    validation = data.world("validation")
    found = contestants(
        study.config.at(data.temperature), validation.traces.students, validation.arms, validation.features, None, validation
    )
    return {**further, **{name: found[name] for name in BASELINES if name in found}}


def _rows(
    study: Study,
    table: str,
    data: Data,
    learners: Mapping[str, Sequence[Trial]],
    family: Family | None,
    others: Callable[[], Mapping[str, Policy]],
    rivals: Sequence[str],
) -> list[Row]:
    """Return the rows of both comparisons; each is kept."""
    config = study.config
    depends_on = [
        data.settings(),
        [trial.name for trials in learners.values() for trial in trials],
        [config.evaluation.seed, str(config.threshold)],
    ]

    def replayed() -> list[Row]:
        mine = {learner: policies_of(trials) for learner, trials in learners.items()}
        found, spreads = compared(data, others(), mine, config.evaluation.seed)
        return _told(found, table, data, spreads, learners, rivals)

    def live() -> list[Row]:
        assert family is not None
        policies = {**others(), **{learner: trials[0].policy() for learner, trials in learners.items()}}
        found = _decoded(study, data, family, policies)
        return _told(found, table, data, {learner: {"num_seeds": 1} for learner in learners}, learners, rivals)

    rows = study.kept(f"{table}-T{data.temperature:g}-replay", depends_on, replayed)
    if family is not None and config.evaluation.prompts:
        depends_on.append([config.evaluation.prompts, family.device_name()])
        rows += study.kept(f"{table}-T{data.temperature:g}-live", depends_on, live)
    return rows


def _decoded(study: Study, data: Data, family: Family, policies: Mapping[str, Policy]) -> Comparison:
    world = data.world("test", extra=[Arm(NONE)])
    check_decodable(world.traces, family)
    tasks = [Task.of_recording(world.traces, int(text)) for text in world.texts[: study.config.evaluation.prompts]]
    with progress_bar(f"decoding live at temperature {data.temperature:g}", len(tasks)) as update:
        return compare_live(family, policies, world.arms, tasks, study.config.evaluation.seed, world, update)


def _told(
    found: Comparison, table: str, data: Data, spreads: Row, learners: Mapping[str, Sequence[Trial]], rivals: Sequence[str]
) -> list[Row]:
    rows = [{"table": table, "temperature": data.temperature, **row, **spreads.get(row["policy"], {})} for row in found.rows()]
    kinds = np.array(data.kinds_of("test")[: found.num_texts])
    groups = {None: np.ones(len(kinds), dtype=bool)} | {kind: kinds == kind for kind in dict.fromkeys(kinds) if (kinds != kind).any()}
    for learner, rival, (kind, there) in product(learners, (name for name in rivals if name in found.results), groups.items()):
        mine, others = (found.results[name].times_ms[there] for name in (learner, rival))
        about = {"table": f"{table}, ratios", "temperature": data.temperature, "mode": found.mode, "policy": learner, "baseline": rival}
        told = {"kind": kind, "num_texts": int(there.sum()), "device": found.device, "seed": found.seed}
        rows.append({**about, **told, **ratio(mine, others, found.seed)})
    return rows
