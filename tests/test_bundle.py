"""Bundles: every policy survives the way out and back, and whatever is wrong with one is a line that names it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from dispatch_rl import export
from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.policies.bandits import UCB1Policy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.runtime import onnx_file
from dispatch_rl.runtime.bundle import Bundle
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from tests.bundles import ARMS, default_arms, network, pocket_bundle, write

STUDENTS = ("small", "medium", "large")


def observations(count: int = 200) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return random observations of the pocket family ``[count, 13]``."""
    return np.random.default_rng(0).uniform(0, 3, size=(count, 13)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as a training leaves it, without the training."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    (folder / "best").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "short", "sampling": {"temperature": 0.8, "top_k": 50}}))
    network(STUDENTS, len(default_arms())).save(folder / "best" / "policy.safetensors")
    lines = [{"step": 512, "seconds": 2.0, "arm_shares": {}}, {"step": 512, "validation_latency_ms_per_token": 1.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = {"mode": "live", "latency_ms_per_token": 1.25, "ci_low": 1.0, "ci_high": 1.5, "speedup": 2.0, "device": "a CPU"}
    (folder / "evaluation.json").write_text(json.dumps([{"policy": "learned", **row}, {"policy": "random", **row}]))
    return folder


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
        (lambda values: values["sampling"].update(temperature=-1), "sampling: sampling.temperature: -1"),
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


def test_missing_and_unreadable_files_are_one_line(bundle: Path, tmp_path: Path) -> None:
    """No folder, no policy, no JSON, no safetensors."""
    with pytest.raises(UserError, match=r"there is no .*nowhere.dispatcher\.json; python -m dispatch_rl\.export"):
        Bundle.read(tmp_path / "nowhere")
    (bundle / "policy.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match=r"policy\.safetensors: "):
        Bundle.read(bundle)
    (bundle / "policy.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no .*policy\.safetensors"):
        Bundle.read(bundle)
    (bundle / "dispatcher.json").write_text("{")
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


def test_export_writes_all_there_is_to_know(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features, arms, family, sampling, training, the rows that matter, versions; a card that says it in words."""
    export.main([str(run), f"--output={tmp_path}/bundle"])
    assert "written: " in capsys.readouterr().out
    bundle = Bundle.read(tmp_path / "bundle")
    assert isinstance(bundle.policy, NetworkPolicy)
    assert list(bundle.arms) == list(default_arms())
    assert (bundle.sampling.temperature, bundle.sampling.top_k) == (0.8, 50)
    assert (bundle.training["rounds"], bundle.training["validation_latency_ms_per_token"]) == (512, 1.5)
    assert [row["policy"] for row in bundle.evaluation] == ["learned"]
    assert {"dispatch-rl", "torch", "transformers", "numpy", "python"} <= set(bundle.versions)
    card = (tmp_path / "bundle" / "README.md").read_text()
    for words in ("`small-5`", "`lag_large`", "| learned | live | 1.250 (1.000 - 1.500) | 2.00 |", bundle.fingerprint):
        assert words in card


@pytest.mark.parametrize(
    ("policy", "name", "kind"),
    [("threshold", "threshold", ThresholdPolicy), ("medium-5", "always medium-5", FixedPolicy), ("none", "always none", FixedPolicy)],
)
def test_export_of_other_policies(run: Path, policy: str, name: str, kind: type, tmp_path: Path) -> None:
    """Thresholds and fixed arms by name."""
    export.main([str(run), f"--output={tmp_path}/bundle", f"--policy={policy}"])
    bundle = Bundle.read(tmp_path / "bundle")
    assert (bundle.policy_name, type(bundle.policy)) == (name, kind)


def test_export_refuses_what_is_not_there(run: Path, tmp_path: Path) -> None:
    """An unknown policy, a folder that is no run, an output that exists."""
    with pytest.raises(UserError, match="policy: there is no 'oracle'; there are learned, adaptive, threshold, tuned, best_fixed, small-5"):
        export.main([str(run), f"--output={tmp_path}/bundle", "--policy=oracle"])
    with pytest.raises(UserError, match="is not the folder of a run"):
        export.main([str(tmp_path), f"--output={tmp_path}/bundle"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output: .* exists and is not a bundle"):
        export.main([str(run), f"--output={tmp_path}/file"])


def test_export_without_onnx_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and the rest is there."""
    monkeypatch.setattr(onnx_file, "is_possible", lambda: False)
    export.main([str(run), f"--output={tmp_path}/bundle"])
    assert "policy.onnx is left out: pip install 'dispatch-rl[onnx]'" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["README.md", "dispatcher.json", "policy.safetensors"]


def test_onnx_computes_what_numpy_computes(run: Path, tmp_path: Path) -> None:
    """ONNX's own interpreter on the one file: logits within float32 rounding, the same arm everywhere."""
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    export.main([str(run), f"--output={tmp_path}/bundle"])
    policy = Bundle.read(tmp_path / "bundle").policy
    assert isinstance(policy, NetworkPolicy)
    session = reference.ReferenceEvaluator(onnx.load(tmp_path / "bundle" / "policy.onnx"))
    (logits,) = session.run(None, {"observations": observations()})
    exact = np.stack([policy.logits(x) for x in observations()])
    np.testing.assert_allclose(logits, exact, atol=64 * np.finfo(np.float32).eps * np.abs(exact).max())
    assert logits.argmax(axis=1).tolist() == policy.batch(observations()).tolist()


def test_the_actions_of_a_bundle_are_its_arms(pocket: Family, tmp_path: Path) -> None:
    """A fixed policy that names an arm which is not there is refused."""
    path = write(pocket_bundle(pocket, FixedPolicy(5)), tmp_path / "bundle")
    save_file({"action": np.array([6])}, path / "policy.safetensors")
    with pytest.raises(UserError, match="arm 6 is not one of 6"):
        Bundle.read(path)
