"""Compare the policies of a run on held-out texts: ``python -m dispatch_rl.evaluate runs/NAME``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dispatch_rl import cli
from dispatch_rl.config import EvaluationConfig, TrainConfig
from dispatch_rl.errors import UserError, check_seed

if TYPE_CHECKING:
    from dispatch_rl.comparison import Comparison, Evaluation, Row
    from dispatch_rl.decoding.families import Family
    from dispatch_rl.decoding.features import Feature
    from dispatch_rl.policies.base import Policy
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.replay.sources import ReplaySource
    from dispatch_rl.replay.world import ReplayWorld
    from dispatch_rl.runs import RunFolder
    from dispatch_rl.tracking.base import Tracking

_FEW_ARMS = 8
"""With more arms than this, only the best fixed arm is decoded live, not every one."""


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a finished run."""

    mode: Literal["both", "replay", "live"] | None = None
    """replay is exact and quick, live is measured; null means both, or live alone for a run that was trained live."""
    prompts: int | None = None
    """Held-out prompts that are decoded live; null takes the run's setting."""
    seed: int | None = None
    """Seed of the prompts, of the order and of the bootstrap; null takes the run's setting."""
    json: Path | None = None
    """Also write the rows to this file."""

    def __post_init__(self) -> None:
        check_seed("seed", self.seed or 0)


def evaluate_run(
    run: "RunFolder",
    config: TrainConfig,
    learned: "NetworkPolicy",
    family: "Family | None",
    source: "ReplaySource | None",
    tracking: "Tracking | None" = None,
) -> "Evaluation":
    """Measure, print and write the evaluation of a run. Rows of a mode that is not measured stay, if they are of the same policy.

    Args:
        run: Where everything is written.
        config: Its evaluation section says how many prompts are decoded live.
        learned: The policy in question.
        family: The models; None leaves out the live comparison.
        source: Traces and latencies; None leaves out replay.
        tracking: Told the rows, the figures and what the learned policy comes to.
    """
    from dispatch_rl import page, report
    from dispatch_rl.run_card import write_card

    found = _replayed(config, learned, source)
    if family is not None and config.evaluation.prompts:
        found = replace(found, live=_live(config, learned, family, source, found.world))
    kept = _write_rows(run, found.rows())
    print(f"\n{report.summary(found)}\n")
    figures = page.write(found, config.name, run.report, run.figure, kept)
    write_card(run, config)
    others = f"; what they say of {' and '.join(sorted(kept))} was measured before" if kept else ""
    print(f"written: {run.evaluation}, {run.report}, {run.figure}{others}")
    if tracking is not None:
        _track(found, figures, tracking)
    return found


def _write_rows(run: "RunFolder", rows: "list[Row]") -> set[str]:
    """Write the rows beside those of another mode that were measured for the same policy, and return the modes of these."""
    from dispatch_rl.runs import read_json, write_json

    policy = blake2b(run.best_policy.read_bytes(), digest_size=16).hexdigest()
    before, evaluated = read_json(run.evaluation, []), read_json(run.evaluated, {})
    measured = {row["mode"] for row in rows}
    others = {row["mode"] for row in before} - measured
    kept = {mode for mode in others if evaluated.get(mode) == policy}
    if lost := others - kept:
        print(f"{run.evaluation}: its rows of {' and '.join(sorted(lost))} are left out, for they may be of another policy")
    rows = [*rows, *(row for row in before if row["mode"] in kept)]
    write_json(run.evaluation, sorted(rows, key=lambda row: row["mode"] == "live"))
    write_json(run.evaluated, dict.fromkeys(sorted(measured | kept), policy))
    return kept


def _track(found: "Evaluation", figures: Mapping[str, bytes], tracking: "Tracking") -> None:
    from dispatch_rl.contestants import LEARNED

    for comparison in (found.replayed, found.live):
        if comparison is not None:
            rows = comparison.rows()
            tracking.table(f"evaluation/{comparison.mode}", rows)
            tracking.table(f"texts/{comparison.mode}", comparison.text_rows())
            row = next(row for row in rows if row["policy"] == LEARNED)
            told = ("latency_ms_per_token", "speedup", "gap_closed", "draft_acceptance_rate", "mean_acceptance_length")
            tracking.summarise({f"test_{comparison.mode}/{key}": row[key] for key in told if row[key] is not None})
    for title, image in figures.items():
        tracking.image(f"figures/{title.replace(',', '').replace(' ', '_')}", image)


def _replayed(config: TrainConfig, learned: "NetworkPolicy", source: "ReplaySource | None") -> "Evaluation":
    from dispatch_rl.comparison import Evaluation
    from dispatch_rl.contest import compare_replay
    from dispatch_rl.contestants import BEST_FIXED, contestants
    from dispatch_rl.decoding.arms import NONE, Arm

    if source is None:
        return Evaluation(None, None, None)
    validation, test = source.world("validation"), source.world("test", extra=[Arm(NONE)])
    policies = contestants(config, test.traces.students, validation.arms, test.features, learned, validation)
    compared = compare_replay(test, len(validation.arms), policies, BEST_FIXED, config.evaluation.seed)
    return Evaluation(compared, None, test)


def _live(
    config: TrainConfig, learned: "NetworkPolicy", family: "Family", source: "ReplaySource | None", world: "ReplayWorld | None"
) -> "Comparison":
    from dispatch_rl.contest import Task, check_decodable, compare_live, with_target
    from dispatch_rl.decoding.features import feature_table
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.prompts import prompts

    count, seed = config.evaluation.prompts, config.evaluation.seed
    if world is not None:
        check_decodable(world.traces, family)
        tasks = [Task.of_recording(world.traces, int(text)) for text in world.texts[:count]]
        if len(tasks) < count:
            print(f"the recording has {len(tasks)} test texts, so as many are decoded live, not {count}; see recording.test_prompts")
    else:
        stream = islice(prompts(config.prompts, family, "test", seed), count)
        tasks = [Task.of_prompt(prompt, config.sampling, config.prompts.max_new_tokens) for prompt in stream]
    features = feature_table(tuple(family.students))
    policies = _live_policies(config, learned, family, features, source)
    arms = world.arms if world is not None else with_target(config.arm_list())
    with progress_bar("decoding live", len(tasks)) as update:
        return compare_live(family, policies, arms, tasks, seed, world, update)


def _live_policies(
    config: TrainConfig, learned: "NetworkPolicy", family: "Family", features: "tuple[Feature, ...]", source: "ReplaySource | None"
) -> "dict[str, Policy]":
    """Return fresh policies: what a bandit learned in replay must not help it here."""
    from dispatch_rl.contestants import BEST_FIXED, contestants

    validation = None if source is None else source.world("validation")
    arms = config.arm_list() if validation is None else list(validation.arms)
    policies = dict(contestants(config, tuple(family.students), arms, features, learned, validation))
    if len(arms) > _FEW_ARMS:
        policies = {name: policy for name, policy in policies.items() if not name.startswith("always ")}
    else:
        policies.pop(BEST_FIXED, None)  # it is one of the fixed arms
    return policies


def main(argv: Sequence[str]) -> None:
    """Evaluate the best policy of a run."""
    parser = cli.make_parser(EvaluateConfig, "evaluate", "Compare the policies of a run on held-out texts, in replay and live.")
    parser.add_argument("run", help="folder of the run, as runs/pocket")
    namespace = cli.parse(parser, argv)
    config = cli.build(EvaluateConfig, parser, namespace)
    cli.check_file("json", config.json)

    from dispatch_rl.runs import RunFolder, write_json

    run = RunFolder.open(Path(namespace.run))
    trained = cli.read_config(TrainConfig, run.config)
    trained = replace(trained, evaluation=_overridden(trained.evaluation, config))
    mode = config.mode or ("live" if trained.live else "both")

    import torch

    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.decoding.features import feature_table
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.sources import open_replay

    learned = NetworkPolicy.load(run.best_policy)
    if not run.finished:
        print(f"{run.path}: the training is not finished; measured is its best policy so far")
    if trained.family.threads is not None:
        torch.set_num_threads(trained.family.threads)
    family = load_family(trained.family) if mode != "replay" and trained.evaluation.prompts else None
    if family is None and mode == "live":
        raise UserError("prompts: 0 prompts leave nothing to decode live")
    source = None if mode == "live" else open_replay(trained, family, progress_bar)
    if source is None:
        learned.check_fits(len(feature_table(tuple(trained.family.students))), len(trained.arm_list()), run.best_policy)
    else:
        world = source.world("test")
        learned.check_fits(len(world.features), len(world.arms), run.best_policy)
        run.check_interface([feature.name for feature in world.features], [arm.name for arm in world.arms])
    found = evaluate_run(run, trained, learned, family, source)
    if config.json is not None:
        write_json(config.json, found.rows())


def _overridden(evaluation: EvaluationConfig, given: EvaluateConfig) -> EvaluationConfig:
    prompts, seed = (old if new is None else new for old, new in ((evaluation.prompts, given.prompts), (evaluation.seed, given.seed)))
    return replace(evaluation, prompts=prompts, seed=seed)


if __name__ == "__main__":
    cli.run(main)
