"""How far the learner is from what is possible with what is known before drafting, as more and more texts are learned from."""

from collections.abc import Sequence

import numpy as np

from dispatch_rl.comparison import Floats
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.replay.oracle import cheapest
from dispatch_rl.replay.running import replay
from dispatch_rl.study.data import Data
from dispatch_rl.study.informed import InformedPolicy, informed_world
from dispatch_rl.study.measuring import Row, latency, over_seeds, policies_of, ratio, tokens_of, tuned_fixed
from dispatch_rl.study.plan import Study
from dispatch_rl.study.trials import Trial


def bound_rows(study: Study) -> list[Row]:
    """Return, for every temperature, a row for each informed policy, and the learner's share of the way to the best of them.

    None where the recording is given: it is made with further texts, and with what the target knows.
    """
    if not study.more:
        print("bound: left out; it needs the models and further texts, not a recording that is given (replay.traces)")
        return []
    family: list[Family] = []  # loaded once, and only if something is missing

    def make(data: Data) -> list[Row]:
        family[:] = family or [load_family(study.config.family)]
        return _rows(family[0], data, study.trials(data, ""), study.informed(data), study.config.evaluation.seed)

    rows: list[Row] = []
    for data in study.data.values():
        depends_on = [trial.name for trial in (*study.trials(data, ""), *study.informed(data))]
        about = [data.settings(), study.config.evaluation.seed, depends_on]
        rows += study.kept(f"bound-T{data.temperature:g}", about, lambda d=data: make(d))  # type: ignore[misc]
    return rows


def _rows(family: Family, data: Data, learner: Sequence[Trial], informed: Sequence[Trial], seed: int) -> list[Row]:
    validation, test = (informed_world(family, data, part) for part in ("validation", "test"))
    plain = data.world("test")
    tokens = tokens_of(plain)
    fixed_ms = replay(plain, tuned_fixed(data)).latency_ms
    mine = over_seeds(plain, policies_of(learner))[0].times_ms
    found = []
    for trial in informed:
        policy = InformedPolicy(validation, trial.policy())
        chosen_by = replay(validation, policy).latency_ms_per_token
        found.append((chosen_by, trial.data.num_training_texts(), replay(test, policy.on(test)).latency_ms))
    # More knowledge than the learner's can do no harm, so the bound is at most what the learner takes.
    validated = over_seeds(data.world("validation"), policies_of(learner))[1]
    bound_ms = min([(float(np.mean(validated)), mine), *((chosen_by, times) for chosen_by, _, times in found)], key=lambda one: one[0])[1]
    common = {
        "table": "bound",
        "temperature": data.temperature,
        "mode": "replay",
        "num_texts": len(plain.texts),
        "seed": seed,
        "device": plain.profile.device,
        "best_fixed_ms_per_token": float(fixed_ms.sum() / tokens.sum()),
        "bound_ms_per_token": float(bound_ms.sum() / tokens.sum()),
        "oracle_ms_per_token": float(cheapest(plain).latency_ms.sum() / tokens.sum()),
    }
    named: list[tuple[str, int, Floats]] = [(learner[0].config.algorithm, learner[0].data.num_training_texts(), mine)]
    named += [("informed", texts, times) for _, texts, times in found]
    return [
        {
            **common,
            "policy": name,
            "training_texts": texts,
            **latency(times, tokens, seed),
            **ratio(times, fixed_ms, seed),
            **_gaps(common, times, tokens),
        }
        for name, texts, times in named
    ]


def _gaps(ends: Row, times_ms: Floats, tokens: Floats) -> Row:
    """Return the shares of the way from the best fixed arm to the bound and to the oracle that is gone; None where there is no way."""
    fixed, mine = ends["best_fixed_ms_per_token"], float(times_ms.sum() / tokens.sum())
    gaps = {key: fixed - ends[f"{end}_ms_per_token"] for key, end in (("bound_gap_closed", "bound"), ("gap_closed", "oracle"))}
    return {key: (fixed - mine) / gap if gap > 0 else None for key, gap in gaps.items()}
