"""Policies as tensors with names: what a bundle keeps of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy

Tensors = Mapping[str, NDArray[Any]]

NETWORK, THRESHOLD, FIXED = "network", "threshold", "fixed"
"""Kinds of policies that can be kept: those that always choose alike."""


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
    raise UserError(f"policy: a {type(policy).__name__} does not always choose alike, so it cannot be kept")


def from_tensors(kind: str, tensors: Tensors, num_features: int, num_actions: int, entropy_index: int) -> Policy:
    """Return the policy that :func:`to_tensors` took apart.

    Args:
        kind: One of ``network``, ``threshold``, ``fixed``.
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
    raise UserError(f"'{kind}' is no kind of policy; there are {NETWORK}, {THRESHOLD} and {FIXED}")


def _vector(tensors: Tensors, name: str, dtype: type) -> NDArray[Any]:
    if name not in tensors or tensors[name].ndim != 1 or tensors[name].dtype != dtype:
        raise UserError(f"{name} is not there as a vector of {np.dtype(dtype)}")
    return tensors[name]


def _action(action: int, num_actions: int) -> int:
    if not 0 <= action < num_actions:
        raise UserError(f"arm {action} is not one of {num_actions}")
    return action
