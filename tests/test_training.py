"""Training as a user starts it: on replay, live, killed and resumed, on another family, on traces from elsewhere."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from dispatch_rl import evaluate, train
from dispatch_rl.errors import UserError
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.profile import ForwardLatency, Profile
from tests.small_runs import DATA, SMALL_PPO, killed_at_validation, start

SMALL_DQN = [
    "--algo=dqn",
    "--num_envs=8",
    "--dqn.total_steps=512",
    "--dqn.learning_starts=64",
    "--dqn.batch_size=32",
    "--dqn.buffer_size=400",
    "--dqn.exploration_final_eps=0.9",  # so that a lost share of random arms would show at once
]
SMALL_ITERATION = [
    "--algo=policy_iteration",
    "--policy_iteration.iterations=3",
    "--policy_iteration.starts=2",
    "--policy_iteration.heat=1",  # killed after one or two, between heats and behind them
    "--policy_iteration.states=64",
    "--policy_iteration.keep=2",
    "--policy_iteration.n_epochs=3",
    "--policy_iteration.batch_size=16",
]
SMALL_QRDQN = [option.replace("dqn", "qrdqn") for option in SMALL_DQN]
BASELINES = {
    "target alone",
    "random",
    "threshold",
    "threshold, tuned",
    "best fixed arm",
    "UCB1",
    "Thompson",
    "LinUCB",
    "learned",
    "learned, adaptive",
}
FIXED = {f"always {arm}" for arm in ("small-5", "medium-5", "large-5", "lookup-5")}


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
    page, pictures = re.subn(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)  # their letters may say anything
    assert pictures >= 8
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


def test_the_best_policy_is_a_checkpoint_or_a_fixed_arm(trained: Path) -> None:
    """Bit for bit one of the checkpoints, unless no learned policy was faster than some fixed arm: then always that arm."""
    path = trained / "best" / "policy.safetensors"
    best = NetworkPolicy.load(path)
    best.check_fits(13, 5, trained)
    if path.read_bytes() not in [checkpoint.read_bytes() for checkpoint in trained.glob("checkpoints/*/policy.safetensors")]:
        observations = np.random.default_rng(0).uniform(0, 10, (100, 13)).astype(np.float32)
        arms = json.loads((trained / "interface.json").read_text())["arms"]
        always = rows_of(trained, "replay")["best fixed arm"]["arm_shares"]
        assert {arms[action]: 1 for action in best.batch(observations)} == always


@pytest.mark.parametrize(
    "learner",
    [SMALL_PPO, SMALL_DQN, SMALL_QRDQN, SMALL_ITERATION],
    ids=["ppo", "dqn", "qrdqn", "policy_iteration"],
)
@pytest.mark.parametrize("killed_after", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(
    home: Path, learner: Sequence[str], killed_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, optimiser, random numbers, environment, metrics. Twice the same training is the same, too."""
    name = f"{learner[0]}-{killed_after}".replace("=", "-").strip("-")
    whole = start(home, f"{name}-whole", *learner, "--evaluation.prompts=0")
    killed_at_validation(killed_after, lambda: start(home, f"{name}-cut", *learner, "--evaluation.prompts=0"), monkeypatch)
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
    assert set(rows_of(run, "live")) == (BASELINES | FIXED) - {"best fixed arm", "threshold, tuned", "learned, adaptive"}


def test_a_policy_for_other_arms_is_no_start(home: Path, trained: Path) -> None:
    """As many arms in another order would be taken for one another."""
    names = ["medium", "small", "large", "lookup"]
    arms = json.dumps([*({"student": name, "length": 5} for name in names), {"student": "none"}])
    with pytest.raises(UserError, match=r"short: its policies were made for other arms than this configuration's"):
        start(home, "swapped", *SMALL_PPO, f"--init={trained}", f"--arms={arms}")
    assert not (home / "runs" / "swapped").exists()


def test_arms_longer_than_what_is_to_be_recorded_are_refused_at_once(home: Path) -> None:
    """Before anything is recorded or measured."""
    with pytest.raises(UserError, match=r"arms: 'small-9' drafts 9 tokens, more than recording\.max_draft_length, 8"):
        start(home, "long", *SMALL_PPO, "--draft_length=9", f"--replay.cache={home}/untouched")
    assert not (home / "untouched").exists()


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


Lines = list[dict[str, Any]]


def from_elsewhere(folder: Path, lines: Lines, **costs_ms: float) -> list[str]:
    """Write traces and a table of costs and return the options that train on them."""
    (folder / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = {name: ForwardLatency((1,), (1,), ((cost,),)) for name, cost in {"target": 10.0, **costs_ms}.items()}
    Profile("theirs", "none", models).write(folder / "costs.json")
    files = [f"--replay.traces={folder}/traces.jsonl", f"--replay.profile={folder}/costs.json", f"--runs={folder}/runs"]
    return [*files, *SMALL_PPO, "--validate_every=256"]


def test_traces_from_elsewhere_train_without_any_model(tmp_path: Path) -> None:
    """Accepted lengths of two drafters and a table of costs: no tokens, no entropies, no family. The tenth texts have short drafts only."""
    rng = np.random.default_rng(0)
    most = [3 if i % 10 == 9 else 6 for i in range(40)]
    lines = [{f"accepted_{name}": rng.integers(high, size=50).tolist() for name in ("ngram", "eagle")} for high in most]
    train.main([*from_elsewhere(tmp_path, lines, ngram=0.1, eagle=1.0), "--evaluation.prompts=0"])
    rows = rows_of(tmp_path / "runs" / "pocket", "replay")
    assert {"always ngram-5", "always eagle-5", "UCB1", "learned", "oracle"} <= set(rows)
    assert "threshold" not in rows


def test_where_nothing_is_to_be_learned_the_best_arm_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`eagle` is always right. A policy that looks pays for `ngram`, which reads along; the arm itself does not, and is taken instead."""
    lines = [{"accepted_ngram": [0] * 40, "accepted_eagle": [6] * 40}] * 20
    train.main([*from_elsewhere(tmp_path, lines, ngram=0.1, eagle=1.0), "--draft_length=5", "--evaluation.prompts=0"])
    assert "no learned policy was faster than always eagle-5, which is kept instead" in capsys.readouterr().out
    rows = rows_of(tmp_path / "runs" / "pocket", "replay")
    assert rows["learned"]["latency_ms_per_token"] == rows["best fixed arm"]["latency_ms_per_token"]
    assert rows["learned"]["arm_shares"] == {"eagle-5": 1.0}


WHOLE: dict[str, Any] = {"prompt": [5, 6], "path": [1, 2, 3], "limit": 9, "seed": 0, "temperature": 0.6, "top_k": None, "top_p": None}
SEEN = {"entropy": [0.1] * 3, "top1_probability": [0.9] * 3, "margin": [1.0] * 3}
LOOKED_UP = {"lookup_match": [0] * 3, "lookup_drafted": [0] * 3, "lookup_accepted": [0] * 3}
MATCHES = {f"match_{name}": [True, False, True] for name in ("small", "medium", "large")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"accepted_small": [5, 0, 0]}, "lacks prompt, path, limit, seed, temperature, top_k, top_p, entropy, lookup_accepted"),
        ({**WHOLE, **SEEN, **MATCHES}, "lacks lookup_accepted, lookup_drafted, lookup_match, so its texts cannot be decoded live"),
        ({**WHOLE, **SEEN, **LOOKED_UP, **MATCHES}, "begins at position 0, not behind the token that reading the prompt emits"),
    ],
)
def test_what_cannot_be_decoded_live_is_refused_before_training(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    """One line, and no run."""
    with pytest.raises(UserError, match=f"evaluation.prompts: {tmp_path}/traces.jsonl {message}"):
        train.main([*from_elsewhere(tmp_path, [line] * 10, small=1.0, medium=2.0, large=3.0), "--evaluation.prompts=2"])
    assert not (tmp_path / "runs").exists()


def test_too_few_texts_for_three_parts_are_refused_before_training(tmp_path: Path) -> None:
    """The tenth text is the first of the test part."""
    with pytest.raises(UserError, match="the recording holds no test texts"):
        train.main([*from_elsewhere(tmp_path, [{"accepted_a": [5, 0, 0]}] * 9, a=1.0), "--evaluation.prompts=0"])
    assert not (tmp_path / "runs").exists()
