"""Policies and bundles that no training is needed for."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from dispatch_rl.config import DecodingConfig, FamilyConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.features import feature_table
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.runtime.bundle import Bundle

ARMS = ArmTable([Arm("small", 5), Arm("small", 2), Arm("medium", 5), Arm("large", 5), Arm(LOOKUP, 5), Arm(NONE)])
"""For the pocket family."""


def network(students: tuple[str, ...], num_actions: int, seed: int = 0, spread: float = 2.0) -> NetworkPolicy:
    """Return a random network whose choice changes from round to round."""
    rng = np.random.default_rng(seed)
    scale = [feature.scale for feature in feature_table(students)]
    sizes = [len(scale), 64, 64, num_actions]
    weights = [rng.normal(scale=spread / np.sqrt(n), size=(m, n)).astype(np.float32) for n, m in pairwise(sizes)]
    biases = [rng.normal(size=m).astype(np.float32) for m in sizes[1:]]
    return NetworkPolicy(np.array(scale, dtype=np.float32), weights, biases)


def pocket_bundle(family: Family, policy: Policy | None = None, arms: ArmTable = ARMS) -> Bundle:
    """Return a bundle for the pocket family; its policy is a random network if none is given."""
    chosen = network(tuple(family.students), len(arms)) if policy is None else policy
    fingerprint = family_fingerprint(family)
    return Bundle("pocket", "learned", chosen, arms, FamilyConfig(), fingerprint, Sampling(temperature=0.6))


def write(bundle: Bundle, path: Path) -> Path:
    """Write a bundle without a card."""
    bundle.write(path, overwrite=True, extras={})
    return path


def default_arms() -> ArmTable:
    """Return the arms of a configuration that names none."""
    return ArmTable(DecodingConfig().arm_list())
