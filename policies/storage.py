"""Policies as tensors with names: what a bundle keeps of them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.errors import UserError
from dispatch_rl.policies.adaptive import AdaptivePolicy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy

Tensors = Mapping[str, NDArray[Any]]

NETWORK, THRESHOLD, FIXED = "network", "threshold", "fixed"
"""Kinds of policies that always choose alike."""
ADAPTIVE = "adaptive"
"""One of them with arms to fall back on; what it has seen while it decoded is not kept."""


def to_tensors(policy: Policy) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return the kind of a policy and what it is made of.

    Raises:
        UserError: It is of no kind that can be kept.
    """
    if isinstance(policy, NetworkPolicy):
        return NETWORK, policy.tensors()
    if isinstance(policy, ThresholdPolicy):
        return THRESHOLD, {"limits": np.array(policy.limits, dtype=np.float64), "actions": np.array(policy.actions, dtype=np.int64)}
    if isinstance(policy, FixedPolicy):
        return FIXED, {"action": np.array([policy.action], dtype=np.int64)}
    if isinstance(policy, AdaptivePolicy):
        kind, tensors = to_tensors(policy.learned)
        entropy = [] if policy.entropy_index is None else [policy.entropy_index]
        own = {"actions": np.array(policy.actions, dtype=np.int64), "entropy": np.array(entropy, dtype=np.int64)}
        own |= {"budget": np.array([policy.share, policy.credit]), "seed": np.array([policy.seed], dtype=np.int64)}
        return ADAPTIVE, {**own, **{f"{kind}/{name}": tensor for name, tensor in tensors.items()}}
    raise UserError(f"policy: a {type(policy).__name__} does not always choose alike, so it cannot be kept")


def from_tensors(kind: str, tensors: Tensors, num_features: int, num_actions: int, entropy_index: int) -> Policy:
    """Return the policy that :func:`to_tensors` took apart.

    Args:
        kind: One of ``network``, ``threshold``, ``fixed``, ``adaptive``.
        tensors: By name.
        num_features: Length of the observation.
        num_actions: Number of arms.
        entropy_index: Where the entropy stands in the observation.

    Raises:
        UserError: They are not those of such a policy, or it is one for other features or arms.
    """
    if kind == NETWORK:
        network = NetworkPolicy.from_tensors(tensors)
        if (network.num_features, network.num_actions) != (num_features, num_actions):
            sizes = f"{network.num_features} features and knows {network.num_actions} arms"
            raise UserError(f"the network reads {sizes}, not {num_features} and {num_actions}")
        return network
    if kind == THRESHOLD:
        limits = _vector(tensors, "limits", np.float64).tolist()
        actions = [_action(action, num_actions) for action in _vector(tensors, "actions", np.int64).tolist()]
        return ThresholdPolicy(limits, actions, entropy_index)
    if kind == FIXED:
        actions = _vector(tensors, "action", np.int64).tolist()
        if len(actions) != 1:
            raise UserError(f"action holds {len(actions)} numbers, not 1")
        return FixedPolicy(_action(actions[0], num_actions))
    if kind == ADAPTIVE:
        return _adaptive(tensors, num_features, num_actions, entropy_index)
    raise UserError(f"'{kind}' is no kind of policy; there are {NETWORK}, {THRESHOLD}, {FIXED} and {ADAPTIVE}")


def _adaptive(tensors: Tensors, num_features: int, num_actions: int, entropy_index: int) -> AdaptivePolicy:
    parts = [name.partition("/") for name in tensors]
    kinds = {kind for kind, slash, _ in parts if slash}
    if len(kinds) != 1 or not kinds <= {NETWORK, THRESHOLD, FIXED}:
        raise UserError(f"it adapts {' and '.join(sorted(kinds)) or 'nothing'}, not one {NETWORK}, {THRESHOLD} or {FIXED}")
    own = {name: tensors[name] for name in tensors if "/" not in name}
    (kind,) = kinds
    learned = from_tensors(
        kind, {rest: tensors["/".join((k, rest))] for k, slash, rest in parts if slash}, num_features, num_actions, entropy_index
    )
    actions = [_action(action, num_actions) for action in _vector(own, "actions", np.int64).tolist()]
    entropy, seed = _vector(own, "entropy", np.int64).tolist(), _vector(own, "seed", np.int64).tolist()
    budget = _vector(own, "budget", np.float64).tolist()
    if len(entropy) > 1 or not all(0 <= index < num_features for index in entropy):
        raise UserError(f"entropy is {entropy}, not the number of one of {num_features} features, or empty")
    if len(budget) != 2 or not all(0 <= part < math.inf for part in budget) or len(seed) != 1 or seed[0] < 0:
        raise UserError(f"budget is {budget} and seed {seed}; they are two numbers and one, of at least 0")
    return AdaptivePolicy(learned, actions, entropy[0] if entropy else None, share=budget[0], credit=budget[1], seed=seed[0])


def _vector(tensors: Tensors, name: str, dtype: type) -> NDArray[Any]:
    if name not in tensors or tensors[name].ndim != 1 or tensors[name].dtype != dtype:
        raise UserError(f"{name} is not there as a vector of {np.dtype(dtype)}")
    return tensors[name]


def _action(action: int, num_actions: int) -> int:
    if not 0 <= action < num_actions:
        raise UserError(f"arm {action} is not one of {num_actions}")
    return action
