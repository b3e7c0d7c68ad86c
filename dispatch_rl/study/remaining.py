"""Where the learner loses time against the oracle."""

from itertools import pairwise

import numpy as np

from dispatch_rl.decoding.features import ENTROPY_BUCKETS_NATS
from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.regret import CATCH_UP, MISSED, regret
from dispatch_rl.study.data import Data
from dispatch_rl.study.measuring import Row, over_seeds, policies_of, tokens_of
from dispatch_rl.study.plan import Study


def regret_rows(study: Study) -> list[Row]:
    """Return, for every temperature, the lost time by the entropy before the round and by what was missed."""
    rows: list[Row] = []
    for data in study.data.values():
        names = [trial.name for trial in study.trials(data, "")]
        rows += study.kept(f"regret-T{data.temperature:g}", [data.settings(), names], lambda d=data: _lost(study, d))  # type: ignore[misc]
    return rows


def _lost(study: Study, data: Data) -> list[Row]:
    world, trials = data.world("test"), study.trials(data, "")
    rounds = over_seeds(world, policies_of(trials))[0].rounds
    found = regret(world, rounds, cheapest(world))
    tokens = tokens_of(world).sum() * len(trials)
    total = found.choice_ms.sum() + found.catch_up_ms.sum()
    bucket = np.digitize(np.nan_to_num(rounds.entropy_nats), ENTROPY_BUCKETS_NATS[1:-1])
    buckets: list[tuple[float | None, float | None]] = list(pairwise(ENTROPY_BUCKETS_NATS))
    if np.isnan(rounds.entropy_nats).all():  # the recording has none
        buckets = [(None, None)]
    rows = []
    for number, (low, high) in enumerate(buckets):
        here = bucket == number
        for missed in MISSED:
            lost = found.catch_up_ms[here] if missed == CATCH_UP else found.choice_ms[here & (found.missed == missed)]
            rows.append(
                {
                    "table": "regret",
                    "temperature": data.temperature,
                    "policy": study.config.study.learner,
                    "mode": "replay",
                    "entropy_low": low,
                    "entropy_high": high,
                    "round_share": float(here.mean()),
                    "missed": missed,
                    "lost_ms_per_token": float(lost.sum() / tokens),
                    "lost_share": float(lost.sum() / total) if total > 0 else 0.0,
                    "num_seeds": len(trials),
                    "device": world.profile.device,
                }
            )
    return rows
