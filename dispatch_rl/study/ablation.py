"""What groups of features and groups of arms are worth: the learner without them, on the same texts."""

from collections.abc import Sequence

from dispatch_rl.comparison import ORACLE, Comparison
from dispatch_rl.contestants import BEST_FIXED
from dispatch_rl.study.measuring import Row, compared, policies_of, ratio, tuned_fixed
from dispatch_rl.study.plan import Study
from dispatch_rl.study.trials import Trial


def feature_rows(study: Study) -> list[Row]:
    """Return a row for all features and one for each group that was hidden."""
    groups = study.without_features()
    everything = study.full()
    depends_on = [[trial.name for trial in trials] for trials in (everything, *(trials for _, trials in groups.values()))]

    def make() -> list[Row]:
        learner, fixed = study.config.study.learner, {BEST_FIXED: tuned_fixed(study.base)}
        groups_and_none = {"nothing": ((), everything), **groups}
        learners = {group: policies_of(trials) for group, (_, trials) in groups_and_none.items()}
        found, spreads = compared(study.base, fixed, learners, study.config.evaluation.seed)
        rows = {row["policy"]: row for row in found.rows()}
        return [
            {
                "table": "features",
                "temperature": study.base.temperature,
                **rows[group],
                "policy": learner,
                "without": group,
                "features": list(hidden),
                **spreads[group],
                **ratio(found.results[group].times_ms, found.results["nothing"].times_ms, found.seed),
                "best_fixed_ms_per_token": found.latency_ms_per_token(BEST_FIXED).value,
                "oracle_ms_per_token": found.latency_ms_per_token(ORACLE).value,
            }
            for group, (hidden, _) in groups_and_none.items()
        ]

    return study.kept("features", [study.base.settings(), study.config.evaluation.seed, depends_on], make)


def arm_rows(study: Study) -> list[Row]:
    """Return a row for every set of arms: what the learner, the best fixed arm and the oracle make of it."""
    sets = study.arm_sets()
    depends_on = [study.base.settings(), study.config.evaluation.seed, {name: [t.name for t in trials] for name, trials in sets.items()}]

    def make() -> list[Row]:
        found = {name: _with_arms(study, trials) for name, trials in sets.items()}
        learner = study.config.study.learner
        everything = found["all"][0].results[learner].times_ms
        rows = []
        for name, (comparison, spreads) in found.items():
            row = next(row for row in comparison.rows() if row["policy"] == learner)
            rows.append(
                {
                    "table": "arms",
                    "temperature": study.base.temperature,
                    **row,
                    "arms": name,
                    "num_arms": len(sets[name][0].data.arms),
                    **spreads[learner],
                    **ratio(comparison.results[learner].times_ms, everything, comparison.seed),
                    "best_fixed_ms_per_token": comparison.latency_ms_per_token(BEST_FIXED).value,
                    "oracle_ms_per_token": comparison.latency_ms_per_token(ORACLE).value,
                }
            )
        return rows

    return study.kept("arms", depends_on, make)


def _with_arms(study: Study, trials: Sequence[Trial]) -> tuple[Comparison, Row]:
    data = trials[0].data
    return compared(data, {BEST_FIXED: tuned_fixed(data)}, {study.config.study.learner: policies_of(trials)}, study.config.evaluation.seed)
