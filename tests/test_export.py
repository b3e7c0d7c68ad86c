"""``python -m dispatch_rl.export``: any policy of a run, with all there is to know about it; what cannot be exported is a line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dispatch_rl import export
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.threshold import ThresholdPolicy
from dispatch_rl.runs import RunFolder
from dispatch_rl.runtime import onnx_file
from dispatch_rl.runtime.bundle import Bundle
from dispatch_rl.runtime.card import training_sentence
from tests.bundles import default_arms, network
from tests.test_bundle import STUDENTS, observations


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as a training leaves it, without the training."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    (folder / "best").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "short", "sampling": {"temperature": 0.8, "top_k": 50}}))
    network(STUDENTS, len(default_arms())).save(folder / "best" / "policy.safetensors")
    lines = [{"step": 512, "seconds": 2.0, "arm_shares": {}}, {"step": 512, "validation_latency_ms_per_token": 1.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "best" / "validation.json").write_text(json.dumps({"always": None, "validation/latency_ms_per_token": 1.5}))
    row = {"mode": "live", "latency_ms_per_token": 1.25, "ci_low": 1.0, "ci_high": 1.5, "speedup": 2.0, "device": "a CPU"}
    (folder / "evaluation.json").write_text(json.dumps([{"policy": "learned", **row}, {"policy": "random", **row}]))
    return folder


@pytest.mark.parametrize(
    ("algo", "always", "words"), [("ppo", None, "PPO on 512 rounds of replay"), ("policy_iteration", 2, "Policy iteration on 512 states")]
)
def test_the_card_says_how_the_policy_was_made(run: Path, tmp_path: Path, algo: str, always: int | None, words: str) -> None:
    """What it learned from, and that it is a fixed arm if none that was learned was faster."""
    here = tmp_path / "run"
    shutil.copytree(run, here)
    (here / "interface.json").write_text(json.dumps({"features": [], "arms": [arm.name for arm in default_arms()]}))
    (here / "best" / "validation.json").write_text(json.dumps({"always": always, "validation/latency_ms_per_token": 1.25}))
    summary = export.training_summary(RunFolder(here), TrainConfig(algo=algo))  # type: ignore[arg-type]
    assert summary["validation_latency_ms_per_token"] == 1.25
    sentence = training_sentence(summary)
    assert words in sentence
    assert ("always `large-5`, which was kept instead" in sentence) == (always == 2)


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
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json: it is damaged: .*; remove it to go on without it$"):
        export.main([str(damaged), f"--output={tmp_path}/bundle"])
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


def changed(run: Path, folder: Path, **changes: Any) -> Path:
    """Return a copy of a run with other keys in its configuration."""
    shutil.copytree(run, folder)
    values = yaml.safe_load((run / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **changes}))
    return folder


def test_export_of_a_run_that_was_killed(run: Path, tmp_path: Path) -> None:
    """The metrics end within a line, which does not count."""
    killed = changed(run, tmp_path / "killed")
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1024, "seco')
    export.main([str(killed), f"--output={tmp_path}/bundle"])
    assert Bundle.read(tmp_path / "bundle").training["rounds"] == 512


def test_thresholds_need_a_student(run: Path, tmp_path: Path) -> None:
    """Where no arm drafts with one there are none, and the line says what there is."""
    alone = changed(run, tmp_path / "alone", arms=[{"student": "lookup", "length": 4}, {"student": "none"}])
    with pytest.raises(UserError, match="policy: 'threshold' needs an arm that drafts with a student; there are lookup-4, none"):
        export.main([str(alone), f"--output={tmp_path}/bundle", "--policy=threshold"])


def test_the_folder_one_works_in_is_not_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is empty or a bundle that may be overwritten: one would stand in a folder that is no more."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for folder, options in ((here, []), (here / "bundle", ["--overwrite"])):
        if options:
            export.main([str(run), "--output=bundle"])
            monkeypatch.chdir(folder)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=r"output: \. is where you are"):
            export.main([str(run), "--output=.", *options])
        assert sorted(tmp_path.rglob("*")) == before
