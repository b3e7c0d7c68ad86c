"""What a learned policy is compared with."""

from collections.abc import Mapping, Sequence

from dispatch_rl.config import TrainConfig
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.features import Feature
from dispatch_rl.policies.adaptive import AdaptivePolicy
from dispatch_rl.policies.bandits import LinUCBPolicy, ThompsonPolicy, UCB1Policy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.replay.experts import experts
from dispatch_rl.replay.tuning import best_fixed, tune_thresholds
from dispatch_rl.replay.world import ReplayWorld

LEARNED, THRESHOLD, TUNED, BEST_FIXED = "learned", "threshold", "threshold, tuned", "best fixed arm"
"""Names in tables."""
ADAPTIVE = "learned, adaptive"
"""The learned policy, for which fixed arms stand in while they are faster."""
BEST_PLAIN, BEST_STOPPING = "best plain arm", "best stopping arm"
"""The best of the arms without limits, and of those that stop where a student is unsure, without second choices."""


def fixed_name(arm: Arm) -> str:
    """Return what a policy that always takes ``arm`` is called."""
    return f"always {arm.name}"


def contestants(
    config: TrainConfig,
    students: Sequence[str],
    arms: Sequence[Arm],
    features: Sequence[Feature],
    learned: Policy | None,
    validation: ReplayWorld | None = None,
) -> Mapping[str, Policy]:
    """Return every fixed arm, random, thresholds, bandits and, if there is one, the learned policy, as it is and adapting.

    Args:
        config: Thresholds and seeds.
        students: From cheap to expensive.
        arms: What is chosen from.
        features: What is observed; without the entropy there is no threshold policy.
        learned: The learned policy.
        validation: Texts that the best arms, tuned thresholds and the arms that stand in are chosen on; None leaves them out.

    Raises:
        UserError: The configured thresholds do not fit the arms.
    """
    drafting = [(action, arm) for action, arm in enumerate(arms) if arm.length]
    found: dict[str, Policy] = {fixed_name(arm): FixedPolicy(action) for action, arm in drafting}
    seed = config.evaluation.seed
    found["random"] = RandomPolicy(len(arms), seed)
    table = ArmTable(arms)
    possible = "entropy" in [feature.name for feature in features] and ThresholdPolicy.is_possible(config.threshold, students, table)
    configured = ThresholdPolicy.from_config(config.threshold, students, table) if possible else None
    if configured is not None:
        found[THRESHOLD] = configured
    if validation is not None:
        found[BEST_FIXED] = FixedPolicy(best_fixed(validation))
        if any(arm.watches for arm in arms):
            plain = [action for action, arm in enumerate(arms) if not arm.watches]
            stopping = [action for action, arm in enumerate(arms) if arm.stops and arm.hedge_below is None]
            kinds = {BEST_PLAIN: plain, BEST_STOPPING: stopping}
            found |= {name: FixedPolicy(best_fixed(validation, among)) for name, among in kinds.items() if among}
        if configured is not None:
            found[TUNED] = tune_thresholds(validation, [configured]).policy
    found["UCB1"] = UCB1Policy(len(arms))
    found["Thompson"] = ThompsonPolicy(len(arms), seed)
    found["LinUCB"] = LinUCBPolicy(len(arms), [feature.scale for feature in features])
    if learned is not None:
        found[LEARNED] = learned
        if validation is not None:
            found[ADAPTIVE] = adaptive(learned, validation, seed)
    return found


def adaptive(learned: Policy, validation: ReplayWorld, seed: int = 0) -> AdaptivePolicy:
    """Return ``learned`` with the arms that stand in for it, chosen on ``validation`` texts. It has seen nothing yet."""
    names = [feature.name for feature in validation.features]
    return AdaptivePolicy(learned, experts(validation), names.index("entropy_mean") if "entropy_mean" in names else None, seed=seed)
