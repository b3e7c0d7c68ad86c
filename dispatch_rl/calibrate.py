"""What entropy tells about a family, and the thresholds that follow: ``python -m dispatch_rl.calibrate --config configs/pocket.yaml``."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.policies.threshold import ThresholdPolicy
    from dispatch_rl.replay.traces import Traces
    from dispatch_rl.replay.world import ReplayWorld

Row = dict[str, Any]

BEFORE, OWN = "target's entropy at the token before", "student's own entropy at the token"


@dataclass(frozen=True)
class CalibrateConfig(TrainConfig):
    """A calibration; every key of a training run is understood, so that one file serves both."""

    json: Path | None = None
    """Also write the rows to this file."""


def entropy_rows(traces: "Traces") -> list[Row]:
    """Return the share of the recorded tokens in each bucket of the target's entropy there."""
    counts = _counts(traces.floats["entropy"])
    return [{"table": "entropy", **bucket, "share": count / traces.num_positions} for bucket, count in zip(_buckets(), counts, strict=True)]


def match_rows(traces: "Traces") -> list[Row]:
    """Return the share of tokens that match, by student and bucket of an entropy; None where the bucket is empty.

    The token before the first one is unknown, so first tokens are left out of the first table.
    """
    import numpy as np

    rows = []
    later = np.setdiff1d(np.arange(traces.num_positions), traces.offsets[:-1])
    for student in traces.students:
        match = traces.accepted[student] > 0
        seen = [(BEFORE, traces.floats["entropy"][later - 1], match[later])]
        if f"entropy_{student}" in traces.floats:
            seen.append((OWN, traces.floats[f"entropy_{student}"], match))
        for by, entropies, matches in seen:
            for bucket, tokens, hits in zip(_buckets(), _counts(entropies), _counts(entropies[matches]), strict=True):
                rate = {"num_tokens": tokens, "match_rate": hits / tokens if tokens else None}
                rows.append({"table": "matches", "student": student, "by": by, **bucket, **rate})
    return rows


def threshold_rows(config: TrainConfig, world: "ReplayWorld", with_target: "ReplayWorld") -> list[Row]:
    """Return what the configured and the tuned thresholds and the best fixed arm take on the texts of ``world``.

    Args:
        config: Thresholds and seed.
        world: Texts and arms to choose from.
        with_target: The same, and the target alone behind them if it is not among the arms.
    """
    from dispatch_rl.contest import compare_replay
    from dispatch_rl.contestants import BEST_FIXED, THRESHOLD, TUNED
    from dispatch_rl.policies.fixed import FixedPolicy
    from dispatch_rl.policies.threshold import ThresholdPolicy
    from dispatch_rl.replay.tuning import best_fixed, tune_thresholds

    configured = ThresholdPolicy.from_config(config.threshold, world.traces.students, world.arms)
    fixed = FixedPolicy(best_fixed(world))
    tuned = tune_thresholds(world, [configured]).policy
    policies = {THRESHOLD: configured, BEST_FIXED: fixed, TUNED: tuned}
    rows = compare_replay(with_target, len(world.arms), policies, BEST_FIXED, config.evaluation.seed).rows()
    rules = {name: {"limits": list(p.limits), "arms": _names(p, world.arms)} for name, p in ((THRESHOLD, configured), (TUNED, tuned))}
    return [{"table": "thresholds", **row, **rules.get(row["policy"], {})} for row in rows]


def _names(policy: "ThresholdPolicy", arms: "ArmTable") -> list[str]:
    return [arms[action].name for action in policy.actions]


def _buckets() -> list[Row]:
    from dispatch_rl.decoding.features import ENTROPY_BUCKETS_NATS

    return [{"entropy_low": low, "entropy_high": high} for low, high in pairwise(ENTROPY_BUCKETS_NATS)]


def _counts(entropies_nats: "NDArray[np.float32]") -> list[int]:
    """Return how many entropies lie in each bucket; what is above the last edge counts as in the last bucket."""
    import numpy as np

    from dispatch_rl.decoding.features import ENTROPY_BUCKETS_NATS

    counts: list[int] = np.bincount(np.digitize(entropies_nats, ENTROPY_BUCKETS_NATS[1:-1]), minlength=len(_buckets())).tolist()
    return counts


def entropy_table(rows: Sequence[Row]) -> str:
    """Return the shares of tokens, a line per bucket."""
    return "\n".join(["nats          share of tokens", *(f"{_bucket(row):<14}{row['share']:>7.1%}" for row in rows)])


def match_table(rows: Sequence[Row], by: str) -> str:
    """Return the shares of matching tokens (and of how many), a line per bucket and a column per student."""
    students = list(dict.fromkeys(row["student"] for row in rows if row["by"] == by))
    lines = [f"{'nats':<10}" + "".join(f"{student:>18}" for student in students)]
    for bucket in _buckets():
        here = [row for row in rows if row["by"] == by and row["entropy_low"] == bucket["entropy_low"]]
        cells = ["" if row["match_rate"] is None else f"{row['match_rate']:.1%} of {row['num_tokens']}" for row in here]
        lines.append(f"{_bucket(bucket):<10}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _bucket(row: Row) -> str:
    return f"{row['entropy_low']:g}-{row['entropy_high']:g}"


def rule_text(limits: Sequence[float], arms: Sequence[str]) -> str:
    """Return a threshold rule in words: ``small-5 below 0.4 nats, medium-5 from 0.4``."""
    if not limits:
        return f"{arms[0]} everywhere"
    return ", ".join(
        [f"{arms[0]} below {limits[0]:.3g} nats", *(f"{arm} from {limit:.3g}" for limit, arm in zip(limits, arms[1:], strict=True))]
    )


def main(argv: Sequence[str]) -> None:
    """Calibrate on the validation texts, print, write."""
    description = "Show what entropy tells about a family on validation texts, and tune the thresholds of the baseline in replay."
    parser = cli.make_parser(CalibrateConfig, "calibrate", description)
    config = cli.build(CalibrateConfig, parser, cli.parse(parser, argv))
    cli.check_file("json", config.json)

    from dispatch_rl import report
    from dispatch_rl.decoding.arms import NONE, Arm
    from dispatch_rl.policies.threshold import ThresholdPolicy
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.sources import open_replay
    from dispatch_rl.runs import write_json

    source = open_replay(config, progress=progress_bar)
    world = source.world("validation")
    traces = world.traces
    if "entropy" not in traces.floats:
        raise UserError(
            f"replay.traces: {traces.source} has no column 'entropy', which calibrate is about; record it, or leave calibrate out"
        )
    if not ThresholdPolicy.is_possible(config.threshold, traces.students, world.arms):
        raise UserError("arms: thresholds choose between students, and none of these arms has one")
    shares, matches = entropy_rows(traces), match_rows(traces)
    thresholds = threshold_rows(config, world, source.world("validation", extra=[Arm(NONE)]))
    print(f"{traces.num_texts} validation texts, {traces.num_positions} tokens\n\ntarget's entropy at the tokens\n{entropy_table(shares)}")
    for by in (BEFORE, OWN):
        if any(row["by"] == by for row in matches):
            print(f"\ntokens that a student matches, by the {by}\n{match_table(matches, by)}")
    print(f"\nreplayed on the same texts; {world.profile.device}\n{report.table(thresholds)}\n")
    for row in thresholds:
        if "limits" in row:
            print(f"{row['policy']}: {rule_text(row['limits'], row['arms'])}")
    print("tuned and best fixed were chosen on these very texts; evaluate compares them on others")
    if config.json is not None:
        write_json(config.json, [*shares, *matches, *thresholds])


if __name__ == "__main__":
    cli.run(main)
