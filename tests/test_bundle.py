"""Bundles: every policy survives the way out and back, and whatever is wrong with one is a line that names it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.policies.bandits import UCB1Policy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.runtime.bundle import Bundle
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from tests.bundles import ARMS, network, pocket_bundle, write

STUDENTS = ("small", "medium", "large")


def observations(count: int = 200) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random observations of the pocket family ``[count, 13]``."""
    return np.random.default_rng(0).uniform(0, 3, size=(count, 13)).astype(np.float32)


@pytest.fixture
def bundle(pocket: Family, tmp_path: Path) -> Path:
    """A bundle of a random network."""
    return write(pocket_bundle(pocket), tmp_path / "bundle")


@pytest.mark.parametrize(
    "policy",
    [network(STUDENTS, len(ARMS)), ThresholdPolicy([0.4, 0.8], [0, 2, 3]), ThresholdPolicy([], [4]), FixedPolicy(5)],
    ids=["network", "threshold", "no limits", "fixed"],
)
def test_every_policy_survives(pocket: Family, policy: Policy, tmp_path: Path) -> None:
    """What is read decides, on every observation, as what was written; the rest of the bundle is equal."""
    before = pocket_bundle(pocket, policy)
    after = Bundle.read(write(before, tmp_path / "bundle"))
    assert [after.policy(x) for x in observations()] == [policy(x) for x in observations()]
    assert list(after.arms) == list(before.arms)
    assert replace(after, policy=policy, arms=before.arms) == replace(before, evaluation=[])
    after.check_fits(pocket, tmp_path)


def test_a_policy_that_learns_is_not_kept(pocket: Family, tmp_path: Path) -> None:
    """A bandit is what it has seen; one line, and nothing is written."""
    with pytest.raises(UserError, match="UCB1Policy does not always choose alike"):
        write(pocket_bundle(pocket, UCB1Policy(6)), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def _edited(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update(changes)


def _swap_features(values: dict[str, Any]) -> None:
    values["features"][0], values["features"][1] = values["features"][1], values["features"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edited(schema=2), "dispatcher.json: schema: 2 is unknown; this version reads 1"),
        (lambda values: values.pop("schema"), "schema: None is unknown"),
        (lambda values: values.pop("arms"), "dispatcher.json: arms: it is missing"),
        (_edited(arms=[]), "arms: the list is empty"),
        (_edited(arms=[{"student": "huge", "length": 5}]), "arms: arms: unknown student 'huge'"),
        (_edited(arms=[{"student": "small", "length": "5"}]), "arms: TypeError"),
        (_edited(arms=[{"student": "small", "length": 5, "min_margin": "x"}]), "arms: min_margin of 'small' is 'x'; it must be a number"),
        (_edited(arms=[{"student": "small", "length": 2.5}]), "is not a student and a length"),
        (
            _edited(arms=[{"student": "small", "length": 5}]),
            "the network reads 13 features and knows 6 arms, not 13 and 1",
        ),
        (_edited(arms=7), "arms: TypeError"),
        (_swap_features, "features: number 0 has name 'entropy_mean'; this version computes 'entropy'"),
        (lambda values: values["features"][3].update(scale=7), "features: number 3 has scale 7; this version computes 5"),
        (lambda values: values["features"].pop(), "features: there are 12; this version computes 13"),
        (lambda values: values["features"][0].pop("unit"), "features: KeyError: 'unit'"),
        (_edited(policy={"name": "learned", "kind": "oracle"}), "there are network, threshold, fixed and adaptive"),
        (_edited(policy={"name": "learned", "kind": "fixed"}), "policy.safetensors: action is not there as a vector of int64"),
        (_edited(family={"target": {"path": "pocket:target"}}), "family: KeyError: 'students'"),
        (lambda values: values["family"].update(dtype="int3"), "family: dtype 'int3' is none of float32"),
        (lambda values: values["family"].update(trust_remote_code=True), "family: TypeError"),
        (lambda values: values["family"].update(threads=2.5), "family: family.threads: 2.5 is not a whole number of at least 1"),
        (lambda values: values["family"].update(max_context="9"), "family: family.max_context: '9' is not a whole number of at least 2"),
        (lambda values: values["family"].update(graphs=3), "family: family.graphs: 3 is neither true nor false"),
        (lambda values: values["sampling"].update(temperature=-1), "sampling: sampling.temperature: -1"),
        (lambda values: values["sampling"].update(temperature=None), "sampling: sampling.temperature: None is not a number"),
        (lambda values: values["sampling"].update(top_k=2.5), "sampling: sampling.top_k: 2.5 is not an integer"),
        (lambda values: values["sampling"].update(method="magic"), "sampling: sampling.method: 'magic' is neither"),
        (_edited(fingerprint=3), "fingerprint: 3 is not a text"),
    ],
)
def test_a_broken_description_is_one_line(bundle: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    """An unknown version, a missing key, other features or another order of them, arms that the family lacks, values out of range."""
    file = bundle / "dispatcher.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        AdaptiveDecoder.from_bundle(bundle)
    assert message in str(caught.value)
    assert str(bundle) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["layers.1.weight"].__setitem__((3, 5), np.nan), "layers.1.weight holds numbers that are not finite"),
        (
            lambda tensors: tensors.update({"layers.1.bias": np.ones(63, dtype=np.float32)}),
            "layers.1 has weights (64, 64) and biases (63",
        ),
        (lambda tensors: tensors.update({"layers.1.weight": np.ones((64, 9), dtype=np.float32)}), "behind 64 inputs"),
        (lambda tensors: tensors.update({"layers.0.bias": np.ones(64)}), "layers.0.bias is float64, not float32"),
        (lambda tensors: tensors.pop("scale"), "a network has scale, layers.0.weight"),
        (lambda tensors: tensors.update(extra=np.ones(1)), "its tensors are extra, layers.0.bias"),
        (lambda tensors: tensors["scale"].fill(2), "scale: it is not that of the features"),
        (lambda tensors: tensors["scale"].fill(0), "scale is not a vector of numbers above 0"),
    ],
)
def test_a_broken_network_is_one_line(bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    """NaN, wrong shapes and types, missing and surplus tensors."""
    file = bundle / "policy.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        AdaptiveDecoder.from_bundle(bundle)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_types_that_numpy_lacks_are_one_line(bundle: Path, dtype: torch.dtype) -> None:
    """In a bundle and in a run; of some of them numpy learns when another package is imported."""
    file = bundle / "policy.safetensors"
    save_tensors({key: tensor.to(dtype) for key, tensor in load_tensors(file).items()}, file)
    for read, path in ((Bundle.read, bundle), (NetworkPolicy.load, file)):
        with pytest.raises(UserError, match=r"policy\.safetensors: "):
            read(path)


def test_missing_and_unreadable_files_are_one_line(bundle: Path, tmp_path: Path) -> None:
    """No folder, no policy, no JSON or too deep a one, no safetensors."""
    with pytest.raises(UserError, match=r"there is no .*nowhere.dispatcher\.json; python -m dispatch_rl\.export"):
        Bundle.read(tmp_path / "nowhere")
    (bundle / "policy.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match=r"policy\.safetensors: "):
        Bundle.read(bundle)
    (bundle / "policy.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no .*policy\.safetensors"):
        Bundle.read(bundle)
    for text in ("{", "[" * 100_000):
        (bundle / "dispatcher.json").write_text(text)
        with pytest.raises(UserError, match=r"dispatcher\.json: it is not JSON"):
            Bundle.read(bundle)
    (bundle / "dispatcher.json").write_text("[]")
    with pytest.raises(UserError, match="holds no object"):
        Bundle.read(bundle)


def test_another_family_is_refused(bundle: Path, pocket: Family, other: Family) -> None:
    """Other students, students in another order, other weights behind the same names."""
    with pytest.raises(UserError, match="arms: unknown student 'small'; the family has tiny, twin"):
        AdaptiveDecoder.from_bundle(bundle, other)
    turned = replace(pocket, students=dict(reversed(pocket.students.items())))
    with pytest.raises(UserError, match="its students are small, medium, large, not large, medium, small"):
        AdaptiveDecoder.from_bundle(bundle, turned)
    mixed = replace(pocket, students={**pocket.students, "small": pocket.students["medium"]})
    with pytest.raises(UserError, match="fingerprint: it was made for the family"):
        AdaptiveDecoder.from_bundle(bundle, mixed)


def test_nothing_is_overwritten_by_accident(pocket: Family, bundle: Path, tmp_path: Path) -> None:
    """A bundle needs ``overwrite``, and what is no bundle is never touched; no temporary folder is left."""
    made = pocket_bundle(pocket)
    with pytest.raises(UserError, match=r"give --overwrite=true"):
        made.write(bundle, overwrite=False, extras={})
    made.write(bundle, overwrite=True, extras={"README.md": b"new"})
    assert (bundle / "README.md").read_bytes() == b"new"
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a bundle"):
        made.write(thesis, overwrite=True, extras={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "thesis"]


def test_a_link_stays_and_leads_to_the_new_bundle(pocket: Family, bundle: Path, tmp_path: Path) -> None:
    """What it leads to is replaced; nothing is left, neither beside the link nor beside the bundle."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "current"
    link.symlink_to(bundle)
    pocket_bundle(pocket).write(link, overwrite=True, extras={"README.md": b"new"})
    assert link.is_symlink()
    assert (bundle / "README.md").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*") if bundle not in path.parents) == ["bundle", "current", "links"]


def test_the_actions_of_a_bundle_are_its_arms(pocket: Family, tmp_path: Path) -> None:
    """A fixed policy that names an arm which is not there is refused."""
    path = write(pocket_bundle(pocket, FixedPolicy(5)), tmp_path / "bundle")
    save_file({"action": np.array([6])}, path / "policy.safetensors")
    with pytest.raises(UserError, match="arm 6 is not one of 6"):
        Bundle.read(path)
