"""Training as a user starts it: on replay, live, killed and resumed, on another family, on traces from elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dispatch_rl import evaluate, recorder, train
from dispatch_rl.errors import UserError
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.profile import ForwardLatency, Profile

ROOT = Path(__file__).resolve().parents[1]
SMALL_PPO = ["--num_envs=8", "--ppo.total_steps=512", "--ppo.rollout_steps=128", "--ppo.batch_size=64", "--ppo.n_epochs=2"]
SMALL_DQN = [
    "--algo=dqn",
    "--num_envs=8",
    "--dqn.total_steps=512",
    "--dqn.learning_starts=64",
    "--dqn.batch_size=32",
    "--dqn.buffer_size=400",
]
SHORT = ["--prompts.max_new_tokens=24", "--evaluation.prompts=3", "--validate_every=128"]
SMALL_DATA = ["train_prompts=12", "validation_prompts=4", "test_prompts=4", "shard_size=8", "max_draft_length=8"]
DATA = [*(f"--recording.{value}" for value in SMALL_DATA), "--profiling.rounds=100", "--profiling.longest_context=128"]
BASELINES = {"target alone", "random", "threshold", "threshold, tuned", "best fixed arm", "UCB1", "Thompson", "LinUCB", "learned"}
FIXED = {f"always {arm}" for arm in ("small-5", "medium-5", "large-5", "lookup-5")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the module's runs and of the recordings that they share."""
    return tmp_path_factory.mktemp("home")


def start(home: Path, name: str, *options: str) -> Path:
    """Train on replay and return the run's folder."""
    places = [f"--runs={home}/runs", f"--replay.cache={home}/traces", f"--name={name}"]
    train.main([f"--config={ROOT}/configs/pocket.yaml", *places, *SHORT, *DATA, *options])
    return home / "runs" / name


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    """A short training on replay with a short evaluation."""
    return start(home, "short", *SMALL_PPO)


def rows_of(run: Path, mode: str) -> dict[str, dict]:  # type: ignore[type-arg]
    """Return the rows of an evaluation by policy."""
    return {row["policy"]: row for row in json.loads((run / "evaluation.json").read_text()) if row["mode"] == mode}


def tensors(run: Path) -> dict[str, bytes]:
    """Return the best policy and the whole last state of a training, byte by byte."""
    files = {name: load_file(run / name) for name in ("best/policy.safetensors", "state/state.safetensors")}
    return {f"{name}/{key}": array.tobytes() for name, arrays in files.items() for key, array in arrays.items()}


def metrics(run: Path) -> list[dict]:  # type: ignore[type-arg]
    """Return the metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "steps_per_second")} for row in rows]


def test_a_run_leaves_everything_behind(trained: Path) -> None:
    """Configuration, command, versions, metrics, TensorBoard events, checkpoints, best policy, evaluation, report and figure."""
    assert yaml.safe_load((trained / "config.yaml").read_text())["ppo"]["total_steps"] == 512
    rows = metrics(trained)
    assert sorted({row["step"] for row in rows}) == [128, 256, 384, 512]
    assert all(row["latency_ms_per_token"] > 0 and row["policy_entropy_nats"] > 0 for row in rows if "arm_shares" in row)
    assert sum("validation_latency_ms_per_token" in row for row in rows) == 4
    assert list(trained.glob("tensorboard/*/events*"))
    assert len(list(trained.glob("checkpoints/step-*/policy.safetensors"))) == 4
    assert json.loads((trained / "environment.json").read_text())["torch"]
    assert (trained / "performance_metrics.png").read_bytes().startswith(b"\x89PNG")
    assert not list(trained.rglob("*.tmp"))
    assert not list(trained.rglob("*.zip")) + list(trained.rglob("*.pkl"))


def test_the_report_stands_alone(trained: Path) -> None:
    """One file with tables and pictures, which fetches nothing."""
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert "http" not in page.replace("https://www.w3.org", "")
    for word in ("oracle", "learned", "gap closed", "predicted"):
        assert word in page


def test_replay_compares_all_policies_with_the_bounds(trained: Path) -> None:
    """All baselines and bounds; no policy is below the oracle; the gap closed is what its definition says."""
    rows = rows_of(trained, "replay")
    assert BASELINES | FIXED | {"oracle", "best fixed arm of each prompt"} <= set(rows)
    assert len([name for name in rows if name.startswith("oracle over")]) == 2
    oracle, fixed = rows["oracle"]["latency_ms_per_token"], rows["best fixed arm"]["latency_ms_per_token"]
    for row in rows.values():
        assert row["latency_ms_per_token"] >= oracle
        assert row["gap_closed"] == pytest.approx((fixed - row["latency_ms_per_token"]) / (fixed - oracle))
    tokens = {rows[name]["num_emitted_tokens"] for name in BASELINES}
    assert len(tokens) == 1


def test_live_is_measured_and_compared_with_the_prediction(trained: Path) -> None:
    """Latency with interval, speed-up, acceptance, arm shares, and what replay predicted."""
    rows = rows_of(trained, "live")
    assert set(rows) == (BASELINES | FIXED) - {"best fixed arm"}
    for row in rows.values():
        assert row["ci_low"] <= row["latency_ms_per_token"] <= row["ci_high"]
        assert sum(row["arm_shares"].values()) == pytest.approx(1)
        assert row["num_emitted_tokens"] == rows["target alone"]["num_emitted_tokens"]
        assert row["predicted_latency_ms_per_token"] > 0
    assert rows["target alone"]["speedup"] == 1
    assert rows["always small-5"]["arm_shares"] == {"small-5": 1}


def test_replay_and_live_count_the_same(trained: Path) -> None:
    """On the texts that both decoded, a fixed arm has the same rounds: replay decodes four, live the first three."""
    replay, live = rows_of(trained, "replay"), rows_of(trained, "live")
    for name in FIXED:
        assert live[name]["num_rounds"] <= replay[name]["num_rounds"]
        assert live[name]["num_texts"] == 3


def test_evaluate_repeats_a_runs_comparison_exactly(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In replay every number comes out again, to the last digit."""
    before = rows_of(trained, "replay")
    evaluate.main([str(trained), "--mode=replay", f"--json={tmp_path}/rows.json"])
    assert {row["policy"]: row for row in json.loads((tmp_path / "rows.json").read_text())} == before
    assert "learned against threshold" in capsys.readouterr().out


def test_the_exported_network_decides_like_the_learner(trained: Path) -> None:
    """The best policy is one of the checkpoints, bit for bit."""
    best = (trained / "best" / "policy.safetensors").read_bytes()
    assert best in [path.read_bytes() for path in trained.glob("checkpoints/*/policy.safetensors")]
    NetworkPolicy.load(trained / "best" / "policy.safetensors").check_fits(13, 5, trained)


@pytest.mark.parametrize("learner", [SMALL_PPO, SMALL_DQN], ids=["ppo", "dqn"])
@pytest.mark.parametrize("killed_after", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(
    home: Path, learner: Sequence[str], killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, optimiser, random numbers, environment, metrics. Twice the same training is the same, too."""
    name = f"{learner[0]}-{killed_after}".replace("=", "-").strip("-")
    whole = start(home, f"{name}-whole", *learner, "--evaluation.prompts=0")
    validate = recorder.Recorder.validate_now
    done: list[float] = []

    def killed(self: recorder.Recorder) -> float:
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append(validate(self))
        return done[-1]

    monkeypatch.setattr(recorder.Recorder, "validate_now", killed)
    with pytest.raises(KeyboardInterrupt):
        start(home, f"{name}-cut", *learner, "--evaluation.prompts=0")
    monkeypatch.undo()
    cut = home / "runs" / f"{name}-cut"
    train.main([f"--resume={cut}"])
    assert tensors(cut) == tensors(whole)
    assert metrics(cut) == metrics(whole)
    assert rows_of(cut, "replay") == rows_of(whole, "replay")


def test_a_finished_run_is_not_resumed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so; other options beside --resume are refused."""
    train.main(["--resume", str(trained)])
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="resume: the run's own configuration is used"):
        train.main(["--resume", str(trained), "--seed=3"])
    with pytest.raises(UserError, match="is not the folder of a run"):
        train.main(["--resume", str(trained / "nowhere")])


def test_a_replayed_policy_is_fine_tuned_live(home: Path, trained: Path) -> None:
    """``--env live --init`` begins with the replayed policy's weights and learns from the clock."""
    live = ["--env=live", f"--init={trained}", "--ppo.total_steps=32", "--ppo.rollout_steps=16", "--ppo.batch_size=16"]
    run = start(home, "tuned", *live, "--ppo.learning_rate=1e-9", "--validation_prompts=1", "--evaluation.prompts=2", "--validate_every=16")
    before, after = (load_file(folder / "best" / "policy.safetensors") for folder in (trained, run))
    for key, tensor in before.items():
        np.testing.assert_allclose(after[key], tensor, atol=1e-5)
    assert set(rows_of(run, "live")) == (BASELINES | FIXED) - {"best fixed arm", "threshold, tuned"}


def test_a_second_family_needs_a_configuration_file_and_no_code(tmp_path: Path, other_folder: Path) -> None:
    """Other architectures, sizes, vocabulary and number of students record, train and evaluate from YAML alone."""
    config = {
        "name": "other",
        "runs": str(tmp_path / "runs"),
        "family": {
            "target": {"path": f"{other_folder}/target"},
            "students": {name: {"path": f"{other_folder}/{name}"} for name in ("tiny", "twin")},
        },
        "draft_length": 3,
        "prompts": {"source": str(tmp_path / "prompts.txt"), "max_new_tokens": 16},
        "replay": {"cache": str(tmp_path / "traces")},
        "evaluation": {"prompts": 2},
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "prompts.txt").write_text("\n".join(f"add({i}, {i + 1})" for i in range(40)))
    train.main([f"--config={tmp_path}/other.yaml", *SMALL_PPO, *DATA])
    rows = rows_of(tmp_path / "runs" / "other", "live")
    assert {"always tiny-3", "always twin-3", "threshold", "learned"} <= set(rows)


def test_traces_from_elsewhere_train_without_any_model(tmp_path: Path) -> None:
    """Accepted lengths of two drafters and a table of costs: no tokens, no entropies, no family."""
    rng = np.random.default_rng(0)
    lines = [{f"accepted_{name}": rng.integers(6, size=50).tolist() for name in ("ngram", "eagle")} for _ in range(40)]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    costs = {"target": 10.0, "ngram": 0.1, "eagle": 1.0}
    Profile("theirs", "none", {name: ForwardLatency((1,), (1,), ((cost,),)) for name, cost in costs.items()}).write(tmp_path / "costs.json")
    files = [f"--replay.traces={tmp_path}/traces.jsonl", f"--replay.profile={tmp_path}/costs.json", f"--runs={tmp_path}/runs"]
    train.main([*files, *SMALL_PPO, "--evaluation.prompts=0", "--validate_every=256"])
    rows = rows_of(tmp_path / "runs" / "pocket", "replay")
    assert {"always ngram-5", "always eagle-5", "UCB1", "learned", "oracle"} <= set(rows)
    assert "threshold" not in rows
