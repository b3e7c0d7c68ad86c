"""Compare the policies of several runs on the same held-out texts: ``python -m dispatch_rl.compare runs/a runs/b``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError, check_seed

if TYPE_CHECKING:
    from dispatch_rl.comparison import Comparison, Result
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.replay.sources import ReplaySource
    from dispatch_rl.replay.world import ReplayWorld
    from dispatch_rl.runs import RunFolder

_SAME = ("family", "sampling", "prompts", "evaluation.seed", "recording.test_prompts", "replay.traces", "replay.profile")
"""Sections and keys that decide which texts are decoded, by which models, at which cost."""
_TOLD = 4
"""Differences that an error names; one line holds no more."""


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of the best policies of several runs, in replay."""

    baseline: str | None = None
    """What the others are compared with: the name of a run, `best fixed arm` or `target alone`; null means the first run."""
    seed: int | None = None
    """Seed of the bootstrap; null takes the first run's evaluation.seed."""
    output: Path = Path("comparison.png")
    """Figure to write."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        check_seed("seed", self.seed or 0)


@dataclass(frozen=True)
class Contender:
    """A run whose policy is compared."""

    label: str
    """What it is called in tables."""
    run: "RunFolder"
    config: TrainConfig


def main(argv: Sequence[str]) -> None:
    """Replay the best policy of every run on the same texts."""
    parser = cli.make_parser(
        CompareConfig, "compare", "Compare the best policies of several runs on the same held-out texts, in exact replay, paired by text."
    )
    parser.add_argument("runs", nargs="+", help="folders of runs, as runs/a runs/b")
    namespace = cli.parse(parser, argv)
    config = cli.build(CompareConfig, parser, namespace)
    for key in ("output", "json"):
        cli.check_file(key, getattr(config, key))
    contenders = open_runs([Path(run) for run in namespace.runs])

    from dispatch_rl import figures, page, report
    from dispatch_rl.comparison import TARGET_ALONE
    from dispatch_rl.contestants import BEST_FIXED
    from dispatch_rl.runs import write_json

    labels = [contender.label for contender in contenders]
    baseline = config.baseline or labels[0]
    if baseline not in (known := [*labels, BEST_FIXED, TARGET_ALONE]):
        raise UserError(f"baseline: there is no '{baseline}'; there are {', '.join(known)}")
    found = compared(contenders, contenders[0].config.evaluation.seed if config.seed is None else config.seed)
    others = [label for label in labels if label != baseline]
    print(f"\n{report.title(found)}\n\n{report.table(found.rows())}\n")
    print("\n".join(report.verdict(found, label, baseline) for label in others))
    draws: list[page.Draw] = [
        lambda axes: figures.latency(axes, found, labels),
        lambda axes: figures.differences(axes, found, [name for name in (*others, BEST_FIXED) if name != baseline], baseline),
    ]
    page.write_picture(draws, config.output)
    written = [config.output]
    if config.json is not None:
        write_json(config.json, rows(found, contenders, baseline))
        written.append(config.json)
    print(f"\nwritten: {', '.join(map(str, written))}")


def open_runs(paths: Sequence[Path]) -> list[Contender]:
    """Return the runs, each under its name, or under its folder where names repeat or mean something else.

    Raises:
        UserError: There are not two, one is no finished run, or they decode other texts or by other models.
    """
    from dispatch_rl.comparison import ORACLE
    from dispatch_rl.runs import RunFolder

    if len(paths) < 2:
        raise UserError("runs: name at least two, as runs/a runs/b")
    if twice := [path for path, count in Counter(path.resolve() for path in paths).items() if count > 1]:
        raise UserError(f"runs: {twice[0]} is named twice")
    runs = [RunFolder.open(path) for path in paths]
    configs = [cli.read_config(TrainConfig, run.config) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if not run.best_policy.is_file():
            raise UserError(f"{run.path}: there is no {run.best_policy.relative_to(run.path)} in it; has its training begun?")
        if different := differences(configs[0], config):
            told = "; ".join(different[:_TOLD]) + ("; and more" if len(different) > _TOLD else "")
            raise UserError(f"{run.path} cannot be compared with {runs[0].path}: {told}")
    names = Counter([ORACLE, *(config.name for config in configs)])
    return [
        Contender(config.name if names[config.name] == 1 else str(run.path), run, config) for run, config in zip(runs, configs, strict=True)
    ]


def differences(first: TrainConfig, other: TrainConfig) -> list[str]:
    """Return which settings that must agree do not."""
    from dispatch_rl.tracking.opening import flat

    mine, theirs = flat(asdict(first)), flat(asdict(other))
    keys = [key for key in dict.fromkeys([*mine, *theirs]) if any(key == same or key.startswith(f"{same}.") for same in _SAME)]
    pairs = [(key, *("null" if flat_config.get(key) is None else flat_config[key] for flat_config in (mine, theirs))) for key in keys]
    return [f"{key} is {here} there and {there} here" for key, here, there in pairs if here != there]


def compared(contenders: Sequence[Contender], seed: int) -> "Comparison":
    """Return the replay of all policies with the latencies of the first run's profile.

    The best fixed arm, chosen on the first run's validation texts, and the bounds are over all arms that any of the runs has.

    Raises:
        UserError: A policy does not fit its configuration, or the recordings turn out to hold different texts.
    """
    from dispatch_rl.contest import compare_replay, with_target
    from dispatch_rl.contestants import BEST_FIXED
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.policies.fixed import FixedPolicy
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.sources import open_replay
    from dispatch_rl.replay.tuning import best_fixed
    from dispatch_rl.replay.world import ReplayWorld

    sources: list[ReplaySource] = []
    for contender in contenders:
        family = sources[0].family if sources and sources[0].needs_family else None
        sources.append(open_replay(contender.config, family, progress_bar))
    _check_same_texts(contenders, sources)
    profile = sources[0].profile
    arms = ArmTable(list(dict.fromkeys(arm for source in sources for arm in source.arms)))
    widest, world = _serving(sources, with_target(arms))
    fixed = FixedPolicy(best_fixed(ReplayWorld(widest.traces("validation"), profile, arms)))
    found = compare_replay(world, len(arms), {BEST_FIXED: fixed}, BEST_FIXED, seed)
    worlds = [ReplayWorld(source.traces("test"), profile, ArmTable(source.arms), source.config.replay.read_along) for source in sources]
    mine = {contender.label: _replayed(contender, world) for contender, world in zip(contenders, worlds, strict=True)}
    return replace(found, results={**found.results, **mine})


def _serving(sources: "Sequence[ReplaySource]", arms: "ArmTable") -> "tuple[ReplaySource, ReplayWorld]":
    """Return a recording that knows enough of the texts for the arms of all runs, and its test texts.

    Raises:
        UserError: None does; what the one lacks that knows the longest drafts.
    """
    from dispatch_rl.replay.world import ReplayWorld

    missing: list[UserError] = []
    for source in sorted(sources, key=lambda source: -source.traces("test").max_draft_length):
        try:
            return source, ReplayWorld(source.traces("test"), sources[0].profile, arms)
        except UserError as error:
            missing.append(error)
    raise missing[0]


def _check_same_texts(contenders: Sequence[Contender], sources: "Sequence[ReplaySource]") -> None:
    """Refuse recordings of different texts, whatever the configurations say."""
    import numpy as np

    first, *others = (source.traces("test") for source in sources)
    for contender, traces in zip(contenders[1:], others, strict=True):
        same = np.array_equal(first.offsets, traces.offsets) and np.array_equal(first.prompt_lengths, traces.prompt_lengths)
        if not same or (first.path is not None and traces.path is not None and not np.array_equal(first.path, traces.path)):
            raise UserError(
                f"{contender.run.path} cannot be compared with {contenders[0].run.path}: "
                f"the recordings {traces.source} and {first.source} hold different texts"
            )


def _replayed(contender: Contender, world: "ReplayWorld") -> "Result":
    from dispatch_rl.comparison import Result
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.replay.running import replay

    run = contender.run
    run.check_interface([feature.name for feature in world.features], [arm.name for arm in world.arms])
    policy = NetworkPolicy.load(run.best_policy)
    policy.check_fits(len(world.features), len(world.arms), run.best_policy)
    replayed = replay(world, policy)
    return Result(replayed.rounds, replayed.latency_ms)


def rows(found: "Comparison", contenders: Sequence[Contender], baseline: str) -> list[dict[str, Any]]:
    """Return the rows of the comparison with, for every policy, its paired difference from the baseline and its run."""
    folders = {contender.label: str(contender.run.path) for contender in contenders}
    told = found.rows()
    for row in told:
        difference = found.difference_ms_per_token(row["policy"], baseline)
        row |= {
            "run": folders.get(row["policy"]),
            "baseline": baseline,
            "difference_ms_per_token": difference.value,
            "difference_ci_low": difference.low,
            "difference_ci_high": difference.high,
        }
    return told


if __name__ == "__main__":
    cli.run(main)
