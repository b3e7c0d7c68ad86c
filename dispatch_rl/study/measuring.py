"""What a study measures with: learners over several seeds, ratios with intervals, rows."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from dispatch_rl.comparison import Comparison, Floats, Result
from dispatch_rl.contest import compare_replay
from dispatch_rl.contestants import BEST_FIXED
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.decoding.rounds import RoundTable
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.tuning import best_fixed
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.statistics import ratio_of_sums
from dispatch_rl.study.data import Data
from dispatch_rl.study.trials import Trial

Row = dict[str, Any]


def policies_of(trials: Sequence[Trial]) -> list[Policy]:
    """Return the policies of all seeds."""
    return [trial.policy() for trial in trials]


def over_seeds(world: ReplayWorld, policies: Sequence[Policy]) -> tuple[Result, list[float]]:
    """Replay one learner's policies; return the mean time of each text over them with all their rounds, and the ms per token of each."""
    runs = [replay(world, policy) for policy in policies]
    columns = ([getattr(run.rounds, field.name) for run in runs] for field in fields(RoundTable))
    rounds = RoundTable(*(np.concatenate(parts) for parts in columns))
    return Result(rounds, np.mean([run.latency_ms for run in runs], axis=0)), [run.latency_ms_per_token for run in runs]


def compared(data: Data, baselines: Mapping[str, Policy], learners: Mapping[str, Sequence[Policy]], seed: int) -> tuple[Comparison, Row]:
    """Replay the test texts with baselines and learners; return the comparison and, by learner, what to say about its seeds."""
    world = data.world("test", extra=[Arm(NONE)])
    found = compare_replay(world, len(data.arms), baselines, BEST_FIXED, seed)
    results, spreads = {}, {}
    for name, policies in learners.items():
        results[name], each = over_seeds(world, policies)
        spreads[name] = spread(each)
    return replace(found, results={**found.results, **results}), spreads


def spread(each: Sequence[float]) -> Row:
    """Return how the ms per token of several seeds differ."""
    deviation = float(np.std(each, ddof=1)) if len(each) > 1 else None
    return {"num_seeds": len(each), "seed_lowest": min(each), "seed_highest": max(each), "seed_deviation": deviation}


def ratio(mine: Floats, others: Floats, seed: int) -> Row:
    """Return the ratio of two policies' times on the same texts ``[texts]`` with its 95 % interval, paired by text."""
    interval = ratio_of_sums(mine, others, seed)
    return {"ratio": interval.value, "ratio_low": interval.low, "ratio_high": interval.high}


def latency(times_ms: Floats, tokens: Floats, seed: int) -> Row:
    """Return ms per token with the 95 % interval."""
    interval = ratio_of_sums(times_ms, tokens, seed)
    return {"latency_ms_per_token": interval.value, "ci_low": interval.low, "ci_high": interval.high}


def tokens_of(world: ReplayWorld) -> Floats:
    """Return the tokens that the rounds of each text emit ``[texts]``."""
    return (world.traces.lengths - world.traces.first_position)[world.texts].astype(np.float64)


def tuned_fixed(data: Data) -> FixedPolicy:
    """Return the arm that is best on the validation texts if it is always chosen."""
    return FixedPolicy(best_fixed(data.world("validation")))
