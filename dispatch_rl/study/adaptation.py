"""Trained on one thing, tested on another, and adapting: what it costs to find out, and whether it comes back."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from dispatch_rl.comparison import Floats, Ints
from dispatch_rl.contestants import adaptive
from dispatch_rl.replay.running import fixed_latencies_ms, replay
from dispatch_rl.replay.tuning import best_fixed
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.study.measuring import Row, latency, policies_of, ratio, tokens_of
from dispatch_rl.study.plan import Study
from dispatch_rl.study.transfer import Condition, axes

_ORDERS = 5
"""Orders in which the texts are decoded."""
_WHOLE, _FIRST, _AGAIN = "all", "first quarter", "second pass"


def adaptation_rows(study: Study) -> list[Row]:
    """Return rows for every pair of conditions that differ in one thing, and for a change of the sort of text and back."""
    rows: list[Row] = []
    seed = study.config.evaluation.seed
    for axis, conditions in axes(study).items():
        depends_on = [seed, _ORDERS, {name: [c.data.settings(), [trial.name for trial in c.trials]] for name, c in conditions.items()}]
        rows += study.kept(f"adaptation-{axis}", depends_on, lambda a=axis, c=conditions: _matrix(study, a, c))  # type: ignore[misc]
        if axis == "texts":
            rows += study.kept("adaptation-changes", depends_on, lambda c=conditions: _changes(study, c))  # type: ignore[misc]
    return rows


def _matrix(study: Study, axis: str, conditions: Mapping[str, Condition]) -> list[Row]:
    rows: list[Row] = []
    for there, tested in conditions.items():
        group = _Group(tested)
        everything = np.arange(len(group.world.texts))
        for name, trained in conditions.items():
            orders = [[rng.permutation(everything), rng.permutation(everything)] for rng in _generators(study)]
            first, again = _decoded(study, trained, group.world, orders)
            told = {"axis": axis, "trained_on": name, "tested_on": there}
            quarter = [order[0][: max(1, len(everything) // 4)] for order in orders]
            for part, times in ((_FIRST, _only(first, quarter)), (_WHOLE, first), (_AGAIN, again)):
                rows.append({**told, "part": part, **_compared(study, trained, group, times)})
    return rows


def _changes(study: Study, conditions: Mapping[str, Condition]) -> list[Row]:
    """Return rows for texts of one sort, then of another, then of the first, each as often as there are test texts of it."""
    single = {name: condition for name, condition in conditions.items() if condition.data.kinds is not None}
    rows: list[Row] = []
    for home, trained in single.items():
        for away, other in single.items():
            if away == home:
                continue
            groups = [_Group(trained), _Group(other), _Group(trained)]
            world = study.base.world("test")
            # All groups' texts are numbered as in the recording with everything in it.
            places = [np.searchsorted(world.texts, group.world.texts) for group in groups]
            orders = [[rng.permutation(place) for place in places] for rng in _generators(study)]
            decoded = _decoded(study, trained, world, orders)
            for number, (sort, group, place) in enumerate(zip((home, away, home), groups, places, strict=True)):
                about = {"axis": "changes", "trained_on": home, "tested_on": f"{home}, {away}, {home}", "part": f"{number + 1}: {sort}"}
                rows.append({**about, **_compared(study, trained, group, decoded[number][:, place])})
    return rows


class _Group:
    """Texts of a condition, and what fixed arms take for them."""

    def __init__(self, tested: Condition) -> None:
        self.world = tested.data.world("test")
        self.fixed_ms = fixed_latencies_ms(self.world)
        self.best = best_fixed(tested.data.world("validation"))


def _generators(study: Study) -> list[np.random.Generator]:
    return [np.random.default_rng([study.config.evaluation.seed, number]) for number in range(_ORDERS)]


def _decoded(study: Study, trained: Condition, world: ReplayWorld, orders: Sequence[Sequence[Ints]]) -> list[Floats]:
    """Let fresh adaptive policies decode texts of ``world``, part by part; return the times by part, else NaN ``[orders, texts]``."""
    validation = trained.data.world("validation")
    found = [np.full((len(orders), len(world.texts)), np.nan) for _ in orders[0]]
    policies = policies_of(trained.trials)
    for number, parts in enumerate(orders):
        policy = adaptive(policies[number % len(policies)], validation, seed=number)
        times = replay(world, policy, world.texts[np.concatenate(parts)]).latency_ms
        ends = list(accumulate(len(part) for part in parts))
        for into, part, end in zip(found, parts, ends, strict=True):
            into[number, part] = times[end - len(part) : end]
    return found


def _only(times: Floats, chosen: Sequence[Ints]) -> Floats:
    """Return the times of some texts of each order, NaN elsewhere."""
    kept = np.full_like(times, np.nan)
    for row, texts in enumerate(chosen):
        kept[row, texts] = times[row, texts]
    return kept


def _compared(study: Study, trained: Condition, group: _Group, times: Floats) -> Row:
    """Return what is told about ``times [orders, texts]``; texts that an order lacks (NaN) are left out, of the others' times too."""
    seed, decoded = study.config.evaluation.seed, np.isfinite(times).any(axis=0)
    times = times[:, decoded]
    there = np.isfinite(times)
    weights, tokens, fixed_ms = there.mean(axis=0), tokens_of(group.world)[decoded], group.fixed_ms[:, decoded]
    mine = np.where(there, times, 0.0).mean(axis=0)
    # In every order another seed's policy adapts: so often it counts without adapting too.
    alone = [replay(group.world, policy).latency_ms for policy in policies_of(trained.trials)]
    learned = np.mean([alone[number % len(alone)] for number in range(len(times))], axis=0)[decoded]
    fixed, hindsight = fixed_ms[group.best], fixed_ms[(fixed_ms @ weights).argmin()]
    each = np.where(there, times, 0.0).sum(axis=1) / (there @ fixed)
    return {
        "table": "adaptation",
        "policy": study.config.study.learner,
        "mode": "replay",
        **latency(mine, tokens * weights, seed),
        **ratio(mine, learned * weights, seed),
        "ratio_to_best_fixed": ratio(mine, fixed * weights, seed),
        "ratio_to_hindsight": float(mine.sum() / (hindsight @ weights)),
        "learned_to_best_fixed": float((learned @ weights) / (fixed @ weights)),
        "worst_order": float(each.max()),
        "num_orders": len(times),
        "num_texts": int(there[0].sum()),
        "device": group.world.profile.device,
        "seed": seed,
    }
