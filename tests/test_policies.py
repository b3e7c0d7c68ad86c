"""Policies: what they choose, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest

from dispatch_rl.config import ThresholdConfig
from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy, RandomPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy

ARMS = ArmTable([Arm("small", 5), Arm("medium", 5), Arm("large", 5), Arm(NONE)])
STUDENTS = ("small", "medium", "large")


def seeing(entropy: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return an observation with this entropy."""
    return np.array([entropy] + 12 * [0.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("entropy", "student"), [(0, "small"), (0.399, "small"), (0.4, "medium"), (0.799, "medium"), (0.8, "large"), (9, "large")]
)
def test_thresholds_part_the_entropies(entropy: float, student: str) -> None:
    """Small below 0.4 nats, medium between, large from 0.8 on; the limits belong to the upper side in float32 too."""
    policy = ThresholdPolicy.from_config(ThresholdConfig(), STUDENTS, ARMS)
    assert ARMS[policy(seeing(entropy))].student == student


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ThresholdConfig(limits=[0.8, 0.4]), "must rise"),
        (ThresholdConfig(limits=[0.4, 0.4]), "must rise"),
        (ThresholdConfig(limits=[-0.1, 0.4]), "not be negative"),
        (ThresholdConfig(limits=[float("nan"), 0.4]), "must rise"),
        (ThresholdConfig(limits=[0.4]), "1 limits part the entropies for 2 students, not for 3"),
        (ThresholdConfig(students=["small", "huge", "large"]), "none drafts with 'huge'"),
    ],
)
def test_impossible_thresholds_are_refused(config: ThresholdConfig, message: str) -> None:
    """Limits out of order, too few of them, unknown students: one line that names the key."""
    with pytest.raises(UserError, match=message):
        ThresholdPolicy.from_config(config, STUDENTS, ARMS)


def test_thresholds_fit_families_of_other_sizes() -> None:
    """With two students the first limit parts them; with one nothing does."""
    two = ThresholdPolicy.from_config(ThresholdConfig(), ("a", "b"), ArmTable([Arm("a", 2), Arm("b", 2)]))
    assert (two.limits, two.actions) == ((0.4,), (0, 1))
    one = ThresholdPolicy.from_config(ThresholdConfig(), ("a",), ArmTable([Arm("a", 2)]))
    assert (one.limits, one.actions) == ((), (0,))


def test_policies_that_do_not_look() -> None:
    """Fixed is fixed; random uses every arm and repeats itself from a seed."""
    assert {FixedPolicy(2)(seeing(x)) for x in (0, 1, 5)} == {2}
    first, second = RandomPolicy(4, seed=1), RandomPolicy(4, seed=1)
    drawn = [first(seeing(0)) for _ in range(200)]
    assert drawn == [second(seeing(0)) for _ in range(200)]
    assert set(drawn) == {0, 1, 2, 3}


def network(seed: int = 0) -> NetworkPolicy:
    """Return a random network of 3 features, 4 hidden units and 2 arms."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 3), (2, 4))]
    biases = [rng.normal(size=size).astype(np.float32) for size in (4, 2)]
    return NetworkPolicy(np.array([1, 2, 4], dtype=np.float32), weights, biases)


def test_network_by_hand() -> None:
    """One hidden unit: logits = (tanh(2 * 6 / 3 - 4), 1) = (0, 1), so the second arm."""
    one = np.ones((1, 1), dtype=np.float32)
    policy = NetworkPolicy(3 * one[0], [2 * one, np.array([[1], [0]], dtype=np.float32)], [-4 * one[0], np.array([0, 1], dtype=np.float32)])
    np.testing.assert_allclose(policy.logits(np.array([6], dtype=np.float32)), [0, 1], atol=1e-6)
    assert policy(np.array([6], dtype=np.float32)) == 1


def test_network_survives_its_file(tmp_path: Path) -> None:
    """What is saved decides as before."""
    policy = network()
    policy.save(tmp_path / "policy.safetensors")
    loaded = NetworkPolicy.load(tmp_path / "policy.safetensors")
    for x in np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32):
        np.testing.assert_array_equal(loaded.logits(x), policy.logits(x))


def test_broken_policy_files_are_refused(tmp_path: Path) -> None:
    """Missing, corrupt, incomplete and non-finite files are one line each that names the file."""
    path = tmp_path / "policy.safetensors"
    with pytest.raises(UserError, match=r"policy\.safetensors"):
        NetworkPolicy.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="not a policy"):
        NetworkPolicy.load(path)
    broken = network()
    broken._tensors["layers.0.bias"] = np.full(4, np.nan, dtype=np.float32)
    broken.save(path)
    with pytest.raises(UserError, match="not finite"):
        NetworkPolicy.load(path)
    del broken._tensors["scale"]
    broken.save(path)
    with pytest.raises(UserError, match="not a policy"):
        NetworkPolicy.load(path)


def test_policy_of_another_family_is_refused(tmp_path: Path) -> None:
    """A policy knows how many features it reads and how many arms it chooses from."""
    with pytest.raises(UserError, match="reads 3 features and knows 2 arms; the configuration has 13 and 5"):
        network().check_fits(13, 5, tmp_path)
