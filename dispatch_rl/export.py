"""Export a policy of a run: ``python -m dispatch_rl.export runs/pocket --output bundle``."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dispatch_rl import __version__, cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.decoding.families import Family
    from dispatch_rl.policies.base import Policy
    from dispatch_rl.runs import RunFolder
    from dispatch_rl.runtime.bundle import Bundle
    from dispatch_rl.tracking.base import Tracking


@dataclass(frozen=True)
class ExportConfig:
    """What to export of a run, and where to."""

    output: Path = Path("bundle")
    """Folder to write to."""
    policy: str = "learned"
    """learned; adaptive (learned, for which fixed arms stand in while they turn out to be faster); threshold (as configured); tuned
    (thresholds that were best on the validation texts); best_fixed (the arm that was); or an arm by name, as small-5 or none."""
    overwrite: bool = False
    """Replace a bundle that is there."""


def policy_of(run: "RunFolder", config: TrainConfig, name: str, family: "Family", arms: "ArmTable") -> "tuple[str, Policy]":
    """Return a policy of a run and its name in tables.

    Raises:
        UserError: There is none of that name, or it does not fit the family.
    """
    from dispatch_rl.contestants import ADAPTIVE, BEST_FIXED, LEARNED, THRESHOLD, TUNED, contestants, fixed_name
    from dispatch_rl.contestants import adaptive as adapting
    from dispatch_rl.decoding.features import feature_table
    from dispatch_rl.policies.fixed import FixedPolicy
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.sources import open_replay

    students = tuple(family.students)
    features = feature_table(students)
    actions = {arm.name: action for action, arm in enumerate(arms)}
    if name in actions:
        return fixed_name(arms[actions[name]]), FixedPolicy(actions[name])
    if name in (LEARNED, "adaptive"):
        learned = NetworkPolicy.load(run.best_policy)
        learned.check_fits(len(features), len(arms), run.best_policy)
        if name == LEARNED:
            return LEARNED, learned
        return ADAPTIVE, adapting(learned, open_replay(config, family, progress_bar).world("validation"))
    compared = {"threshold": THRESHOLD, "tuned": TUNED, "best_fixed": BEST_FIXED}
    if name not in compared:
        raise UserError(f"policy: there is no '{name}'; there are {', '.join([LEARNED, 'adaptive', *compared, *actions])}")
    validation = None if name == "threshold" else open_replay(config, family, progress_bar).world("validation")
    found = contestants(config, students, arms, features, None, validation)
    if compared[name] not in found:
        raise UserError(f"policy: '{name}' needs an arm that drafts with a student; there are {', '.join(actions)}")
    return compared[name], found[compared[name]]


def bundle_of(run: "RunFolder", config: TrainConfig, name: str, family: "Family | None" = None) -> "Bundle":
    """Return the bundle of a policy of a run; ``family`` saves loading it again.

    Raises:
        UserError: The run has no such policy, or was trained on a recording from elsewhere.
    """
    from dispatch_rl.comparison import ORACLE, TARGET_ALONE
    from dispatch_rl.contestants import ADAPTIVE, BEST_FIXED, LEARNED, THRESHOLD
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.replay.fingerprint import family_fingerprint
    from dispatch_rl.runs import environment, read_json
    from dispatch_rl.runtime.bundle import Bundle

    if config.from_elsewhere:
        raise UserError(
            f"{run.config}: replay.traces: the arms are those of {config.replay.traces}, not of the family, so they cannot decode"
        )
    family = family or load_family(config.family)
    arms = ArmTable(config.arm_list())
    arms.check_students(tuple(family.students))
    called, policy = policy_of(run, config, name, family, arms)
    rows = read_json(run.evaluation, [])
    told = (called, TARGET_ALONE, THRESHOLD, BEST_FIXED, ORACLE)
    return Bundle(
        name=config.name,
        policy_name=called,
        policy=policy,
        arms=arms,
        family=config.family,
        fingerprint=family_fingerprint(family),
        sampling=config.sampling,
        training=training_summary(run, config) if called in (LEARNED, ADAPTIVE) else {},
        evaluation=[row for row in rows if row["policy"] in told],
        versions={"dispatch-rl": __version__, **environment(family.device_name())},
    )


def training_summary(run: "RunFolder", config: TrainConfig) -> dict[str, Any]:
    """Return how the learned policy of a run was made."""
    from dispatch_rl.runs import read_json, read_metrics

    rows, best, seen = read_metrics(run.metrics), read_json(run.best_validation, {}), read_json(run.interface, {})
    always = best.get("always")
    return {
        "env": config.env,
        "algo": config.algorithm,
        "rounds": max((row["step"] for row in rows), default=0),
        "seconds": max((row["seconds"] for row in rows if "seconds" in row), default=0.0),
        "seed": config.seed,
        "prompts": str(config.replay.traces) if config.from_elsewhere else config.prompts.source,
        "validation_latency_ms_per_token": best.get("validation/latency_ms_per_token"),
        "always": None if always is None else seen["arms"][always],
    }


def write_bundle(bundle: "Bundle", output: Path, *, overwrite: bool) -> None:
    """Write a bundle with its card and, for a network where ``onnx`` is installed, ``policy.onnx``."""
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.runtime import onnx_file
    from dispatch_rl.runtime.bundle import CARD, ONNX
    from dispatch_rl.runtime.card import card_text

    extras = {CARD: card_text(bundle).encode()}
    if isinstance(bundle.policy, NetworkPolicy) and onnx_file.is_possible():
        extras[ONNX] = onnx_file.network_bytes(bundle.policy)
    bundle.write(output, overwrite=overwrite, extras=extras)
    if isinstance(bundle.policy, NetworkPolicy) and ONNX not in extras:
        print(f"{ONNX} is left out: pip install 'dispatch-rl[onnx]' brings what writes it")


def track_policy(run: "RunFolder", config: TrainConfig, family: "Family | None", tracking: "Tracking") -> None:
    """Give the learned policy of a run to what follows it: the bundle or, of a training without models, the policy's own files."""
    from dispatch_rl.contestants import LEARNED

    about = training_summary(run, config)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        try:
            write_bundle(bundle_of(run, config, LEARNED, family), folder, overwrite=True)
        except UserError as error:
            print(f"the policy is tracked without a bundle: {error}")
            folder.mkdir()
            for path in (run.best_policy, run.interface, run.config, run.card):
                shutil.copy(path, folder)
        tracking.bundle(f"{config.name}-policy", folder, about)


def main(argv: Sequence[str]) -> None:
    """Write the bundle."""
    parser = cli.make_parser(ExportConfig, "export", "Write a policy of a run as a bundle that decodes anywhere: no pickle, no code.")
    parser.add_argument("run", help="folder of the run, as runs/pocket")
    namespace = cli.parse(parser, argv)
    config = cli.build(ExportConfig, parser, namespace)

    from dispatch_rl.runs import RunFolder

    run = RunFolder.open(Path(namespace.run))
    trained = cli.read_config(TrainConfig, run.config)

    from dispatch_rl.runtime.bundle import check_free

    check_free(config.output, overwrite=config.overwrite)
    write_bundle(bundle_of(run, trained, config.policy), config.output, overwrite=config.overwrite)
    print(f"written: {', '.join(str(path) for path in sorted(config.output.iterdir()))}")


if __name__ == "__main__":
    cli.run(main)
