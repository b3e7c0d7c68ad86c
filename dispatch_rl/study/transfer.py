"""Trained on one thing, tested on another: kinds of text, temperatures, latencies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.running import replay
from dispatch_rl.study.data import Data
from dispatch_rl.study.measuring import Row, latency, over_seeds, policies_of, ratio, spread, tokens_of, tuned_fixed
from dispatch_rl.study.plan import Study
from dispatch_rl.study.trials import Trial


@dataclass(frozen=True)
class Condition:
    """Something to be trained and tested on."""

    data: Data
    trials: Sequence[Trial]


def transfer_rows(study: Study) -> list[Row]:
    """Return a row for every pair of conditions that differ in one thing."""
    rows: list[Row] = []
    for axis, conditions in axes(study).items():
        depends_on = {name: [c.data.settings(), [trial.name for trial in c.trials]] for name, c in conditions.items()}
        seed = study.config.evaluation.seed
        rows += study.kept(f"transfer-{axis}", [seed, depends_on], lambda a=axis, c=conditions: _matrix(study, a, c))  # type: ignore[misc]
    return rows


def axes(study: Study) -> dict[str, dict[str, Condition]]:
    """Return the conditions by what differs between them."""
    base, found = study.base, {}
    if by_kind := study.by_kind():
        found["texts"] = {name: Condition(trials[0].data, trials) for name, trials in by_kind.items()}
    if len(study.data) > 1:
        found["temperature"] = {f"{t:g}": Condition(data, study.trials(data, "")) for t, data in study.data.items()}
    if (elsewhere := study.elsewhere()) is not None:
        there = elsewhere.world("test").profile.device
        here = base.world("test").profile.device
        found["latencies"] = {
            here: Condition(base, study.full()),
            there if there != here else f"{there} (other_profile)": Condition(elsewhere, study.trials(elsewhere, "elsewhere")),
        }
    return found


def _matrix(study: Study, axis: str, conditions: Mapping[str, Condition]) -> list[Row]:
    seed = study.config.evaluation.seed
    fixed = {name: tuned_fixed(condition.data) for name, condition in conditions.items()}
    policies = {name: policies_of(condition.trials) for name, condition in conditions.items()}
    rows: list[Row] = []
    for there, condition in conditions.items():
        world = condition.data.world("test")
        tokens = tokens_of(world)
        runs = {name: over_seeds(world, mine) for name, mine in policies.items()}
        best, oracle = replay(world, fixed[there]).latency_ms, cheapest(world).latency_ms
        for trained, (result, each) in runs.items():
            moved = replay(world, fixed[trained]).latency_ms
            rows.append(
                {
                    "table": "transfer",
                    "axis": axis,
                    "policy": study.config.study.learner,
                    "mode": "replay",
                    "trained_on": trained,
                    "tested_on": there,
                    **latency(result.times_ms, tokens, seed),
                    **spread(each),
                    **ratio(result.times_ms, runs[there][0].times_ms, seed),
                    "ratio_to_best_fixed": ratio(result.times_ms, best, seed),
                    "best_fixed_ms_per_token": float(best.sum() / tokens.sum()),
                    "best_fixed_moved_ms_per_token": float(moved.sum() / tokens.sum()),
                    "oracle_ms_per_token": float(oracle.sum() / tokens.sum()),
                    "num_texts": len(tokens),
                    "device": world.profile.device,
                    "seed": seed,
                }
            )
    return rows
