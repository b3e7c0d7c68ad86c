"""Compare the policies of a run on held-out prompts: ``python -m dispatch_rl.evaluate runs/NAME``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig

if TYPE_CHECKING:
    from dispatch_rl.comparison import Comparison
    from dispatch_rl.decoding.families import Family
    from dispatch_rl.policies.base import Policy
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.runs import RunFolder

LEARNED, THRESHOLD = "learned", "threshold"


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation of a finished run."""

    prompts: int | None = None
    """Held-out prompts; null takes the run's setting."""
    seed: int | None = None
    """Seed of the prompts, of the order and of the bootstrap; null takes the run's setting."""
    json: Path | None = None
    """Also write the rows to this file."""


def policies(config: TrainConfig, learned: "NetworkPolicy | None") -> "Mapping[str, Policy]":
    """Return what is compared: each student fixed, random, threshold and, if there is one, the learned policy."""
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
    from dispatch_rl.policies.threshold import ThresholdPolicy

    arms = ArmTable(config.arm_list())
    drafting = [(action, arm) for action, arm in enumerate(arms) if arm.length]
    found: dict[str, Policy] = {f"always {arm.name}": FixedPolicy(action) for action, arm in drafting}
    found["random"] = RandomPolicy(len(arms), config.evaluation.seed)
    found[THRESHOLD] = ThresholdPolicy.from_config(config.threshold, tuple(config.family.students), arms)
    if learned is not None:
        found[LEARNED] = learned
    return found


def evaluate_run(
    run: "RunFolder", config: TrainConfig, family: "Family", learned: "NetworkPolicy", prompts: int, seed: int
) -> "Comparison":
    """Measure, print and write the evaluation of a run."""
    from dispatch_rl import comparison, report
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.prompts import prompts as prompt_stream
    from dispatch_rl.runs import write_json

    held_out = list(islice(prompt_stream(config.prompts, family, "test", seed), prompts))
    with progress_bar("evaluating", len(held_out)) as update:
        result = comparison.compare(
            family,
            policies(config, learned),
            ArmTable(config.arm_list()),
            held_out,
            config.sampling,
            config.prompts.max_new_tokens,
            seed,
            update,
        )
    rows = result.rows()
    write_json(run.evaluation, rows)
    report.draw(result, run.figure, LEARNED)
    sampling = "greedy" if config.sampling.greedy else f"temperature {config.sampling.temperature:g}, {config.sampling.method}"
    print(f"\n{len(held_out)} held-out prompts, up to {config.prompts.max_new_tokens} tokens, {sampling}, {result.device}\n")
    print(report.table(rows))
    print()
    print(report.verdict(result, LEARNED, THRESHOLD))
    print(f"written: {run.evaluation}, {run.figure}")
    return result


def main(argv: Sequence[str]) -> None:
    """Evaluate the best policy of a run."""
    parser = cli.make_parser(EvaluateConfig, "evaluate", "Compare the policies of a run on held-out prompts, live and paired.")
    parser.add_argument("run", help="folder of the run, as runs/pocket")
    namespace = cli.parse(parser, argv)
    config = cli.build(EvaluateConfig, parser, namespace)

    from dispatch_rl.runs import RunFolder, write_json

    run = RunFolder.open(Path(namespace.run))
    trained = cli.read_config(TrainConfig, run.config)

    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.decoding.features import feature_table
    from dispatch_rl.policies.network import NetworkPolicy

    learned = NetworkPolicy.load(run.best_policy)
    family = load_family(trained.family)
    learned.check_fits(len(feature_table(tuple(family.students))), len(trained.arm_list()), run.best_policy)
    prompts = trained.evaluation.prompts if config.prompts is None else config.prompts
    seed = trained.evaluation.seed if config.seed is None else config.seed
    result = evaluate_run(run, trained, family, learned, prompts, seed)
    if config.json is not None:
        write_json(config.json, result.rows())


if __name__ == "__main__":
    cli.run(main)
