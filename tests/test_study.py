"""A study, small: everything is there, nothing is made twice, and what a kill leaves is gone on with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dispatch_rl import study
from dispatch_rl.errors import UserError
from dispatch_rl.study.bound import bound_rows
from tests.small_runs import ROOT

FILE = {
    "name": "small",
    "algo": "policy_iteration",
    "prompts": {"max_new_tokens": 24},
    "recording": {"train_prompts": 8, "validation_prompts": 4, "test_prompts": 4, "shard_size": 8, "max_draft_length": 6},
    "profiling": {"rounds": 100, "longest_context": 128},
    "arms": [
        *({"student": student, "length": 3} for student in ("small", "medium", "large")),
        {"student": "small", "length": 6, "max_entropy": 0.8},
        {"student": "small", "length": 2, "hedge_below": 2.0},
        {"student": "lookup", "length": 4},
        {"student": "none"},
    ],
    "draft_length": 4,
    "num_envs": 8,
    "validate_every": 64,
    "ppo": {"total_steps": 128, "rollout_steps": 64, "batch_size": 32},
    "policy_iteration": {"iterations": 2, "states": 32, "n_epochs": 2, "net_arch": [8]},
    "evaluation": {"prompts": 2},
    "study": {
        "temperatures": [0.6],
        "learners": ["ppo", "policy_iteration"],
        "seeds": 2,
        "further_seeds": 1,
        "bound_texts": 12,
        "other_profile": str(ROOT / "configs" / "gpu-like.json"),
    },
}
RIVALS = {"best plain arm", "best stopping arm", "best fixed arm", "threshold"}
POLICIES = {"target alone", *RIVALS, "threshold, tuned", "UCB1", "LinUCB", "ppo", "policy_iteration"}
BOUNDS = {"oracle", "best fixed arm of each prompt"}

Row = dict[str, Any]


def conduct(home: Path, *options: str) -> Path:
    """Do the study in ``home`` and return its folder."""
    (home / "study.yaml").write_text(yaml.safe_dump(FILE))
    study.main([f"{home}/study.yaml", f"--studies={home}/studies", f"--replay.cache={home}/traces", f"--json={home}/rows.json", *options])
    return home / "studies" / "small"


def written(folder: Path) -> dict[Path, int]:
    """Return when every policy and every piece was written."""
    found = [*folder.glob("policies/*.safetensors"), *folder.glob("pieces/*.json")]
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study."""
    return conduct(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    """Its rows."""
    found: list[Row] = json.loads((folder / "study.json").read_text())
    return found


def of(rows: list[Row], table: str, mode: str = "replay") -> list[Row]:
    """Return the rows of one table."""
    return [row for row in rows if row["table"] == table and row["mode"] == mode]


def test_everybody_is_compared_in_replay_and_live(rows: list[Row]) -> None:
    """Baselines, learners and bounds, with what people and scripts look for."""
    replayed, live = ({row["policy"]: row for row in of(rows, "policies", mode)} for mode in ("replay", "live"))
    assert set(replayed) >= POLICIES | BOUNDS
    assert set(live) == POLICIES
    assert [replayed[name]["num_seeds"] for name in ("ppo", "policy_iteration")] == [2, 2]
    assert replayed["ppo"]["seed_lowest"] <= replayed["ppo"]["latency_ms_per_token"] <= replayed["ppo"]["seed_highest"]
    assert replayed["oracle"]["gap_closed"] == 1
    assert all(live[name]["decision_overhead"] is not None for name in POLICIES)
    assert sum(replayed["ppo"]["arm_shares"].values()) == pytest.approx(1)


def test_learners_are_measured_against_their_rivals_in_pairs(rows: list[Row]) -> None:
    """The ratio is that of the latencies, and its interval is around it; that of all texts is between those of their kinds."""
    for mode in ("replay", "live"):
        latency = {row["policy"]: row["latency_ms_per_token"] for row in of(rows, "policies", mode)}
        ratios = of(rows, "policies, ratios", mode)
        assert {(row["policy"], row["baseline"]) for row in ratios} == {(a, b) for a in ("ppo", "policy_iteration") for b in RIVALS}
        assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in ratios)
        for row in ratios:
            if row["kind"] is None:
                assert row["ratio"] == pytest.approx(latency[row["policy"]] / latency[row["baseline"]])
                pair = [r for r in ratios if r["kind"] is not None and (r["policy"], r["baseline"]) == (row["policy"], row["baseline"])]
                assert {r["kind"] for r in pair} == {"reasoning", "code"}
                assert min(r["ratio"] for r in pair) <= row["ratio"] <= max(r["ratio"] for r in pair)
                assert sum(r["num_texts"] for r in pair) == row["num_texts"]
                # Measured times are never alike, so neither are the kinds'.
                assert mode == "replay" or len({row["ratio"], *(r["ratio"] for r in pair)}) == 3


def test_students_alone(rows: list[Row]) -> None:
    """Three arms of one length, against always the large student."""
    by_name = {row["policy"]: row for row in of(rows, "students")}
    assert by_name["always large-3"]["draft_acceptance_rate"] is not None
    assert set(by_name["policy_iteration"]["arm_shares"]) <= {"small-3", "medium-3", "large-3"}
    assert {row["baseline"] for row in of(rows, "students, ratios")} == {"always large-3", "threshold"}
    assert {row["policy"] for row in of(rows, "students", "live")} >= {"always large-3", "policy_iteration"}


def test_features_and_arms_are_taken_away(rows: list[Row]) -> None:
    """One row per group, measured against nothing taken away."""
    features = {row["without"]: row for row in of(rows, "features")}
    assert set(features) == {
        "nothing", "target's entropy", "acceptance so far", "lags", "prompt lookup's match", "position", "everything"
    }  # fmt: skip
    assert features["nothing"]["ratio"] == 1
    # Who sees nothing is always the same arm.
    assert len(features["everything"]["arm_shares"]) == 1
    arms = {row["arms"]: row for row in of(rows, "arms")}
    assert {name: row["num_arms"] for name, row in arms.items()} == {"plain": 5, "plain and stopping": 6, "all": 7}
    oracles = [arms[name]["oracle_ms_per_token"] for name in ("plain", "plain and stopping", "all")]
    assert oracles == sorted(oracles, reverse=True)


def test_transfer_and_regret(rows: list[Row]) -> None:
    """Every pair of conditions; shares of what is lost add up to all of it."""
    pairs = {(row["axis"], row["trained_on"], row["tested_on"]) for row in of(rows, "transfer")}
    kinds = ("code", "reasoning", "both")
    assert {pair for pair in pairs if pair[0] == "texts"} == {("texts", a, b) for a in kinds for b in kinds}
    assert len({pair for pair in pairs if pair[0] == "latencies"}) == 4
    assert all(row["ratio"] == 1 for row in of(rows, "transfer") if row["trained_on"] == row["tested_on"])
    lost = of(rows, "regret")
    assert sum(row["lost_share"] for row in lost) == pytest.approx(1)
    full = next(row for row in of(rows, "features") if row["without"] == "nothing")
    excess = full["latency_ms_per_token"] - full["oracle_ms_per_token"]
    assert sum(row["lost_ms_per_token"] for row in lost) == pytest.approx(excess)


def test_adapting_policies_move_too(rows: list[Row]) -> None:
    """Every pair of conditions in three parts, and a change of the sort of text and back; costs are compared on the same texts."""
    found = of(rows, "adaptation")
    pairs = {(row["axis"], row["trained_on"], row["tested_on"]) for row in of(rows, "transfer")}
    parts = {"first quarter", "all", "second pass"}
    moved = {(row["axis"], row["trained_on"], row["tested_on"], row["part"]) for row in found if row["axis"] != "changes"}
    assert moved == {(*pair, part) for pair in pairs for part in parts}
    assert {row["part"] for row in found if row["axis"] == "changes" and row["trained_on"] == "code"} == {
        "1: code",
        "2: reasoning",
        "3: code",
    }
    for row in found:
        assert row["ratio_to_hindsight"] >= row["ratio_to_best_fixed"]["ratio"] * 0.999
        assert row["worst_order"] >= row["ratio_to_best_fixed"]["ratio"] * 0.999


def test_the_bound_is_made_with_ever_more_texts(rows: list[Row]) -> None:
    """The learner and three informed policies; the best on the validation texts is the bound, and its way is gone whole."""
    found = of(rows, "bound")
    assert [(row["policy"], row["training_texts"]) for row in found] == [
        ("policy_iteration", 8), ("informed", 2), ("informed", 8), ("informed", 12)
    ]  # fmt: skip
    assert {row["bound_ms_per_token"] for row in found} <= {row["latency_ms_per_token"] for row in found}
    full = next(row for row in of(rows, "features") if row["without"] == "nothing")
    assert found[0]["latency_ms_per_token"] == full["latency_ms_per_token"]
    for row in found:
        ends = [row[f"{end}_ms_per_token"] for end in ("best_fixed", "bound", "oracle")]
        assert row["gap_closed"] == pytest.approx((ends[0] - row["latency_ms_per_token"]) / (ends[0] - ends[2]))
        assert (row["bound_gap_closed"] is None) == (ends[0] <= ends[1])


def test_the_page_has_every_section(folder: Path, rows: list[Row]) -> None:
    """And its conditions, and the figure; the rows are where they were asked for."""
    page = (folder / "study.md").read_text()
    for title in (
        "Policies, temperature 0.6",
        "Students alone",
        "features are worth",
        "arms are worth",
        "tested on another",
        "oracle",
        "known before drafting",
    ):
        assert title in page
    assert "**Device**" in page
    assert "Transfer between temperatures: only one was studied." in page
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder.parents[1] / "rows.json").read_text()) == rows


def test_what_is_done_is_not_done_again(folder: Path, rows: list[Row]) -> None:
    """Given again, the command makes what is missing, to the last digit as it was, and nothing else."""
    (lost,) = folder.glob("policies/T0.6-without-lags-*.safetensors")
    policy = lost.read_bytes()
    lost.unlink()
    next(folder.glob("pieces/features-*")).unlink()
    before = written(folder)
    conduct(folder.parents[1])
    after = written(folder)
    assert before == {path: after[path] for path in before}
    assert len(after) == len(before) + 2
    assert lost.read_bytes() == policy
    assert json.loads((folder / "study.json").read_text()) == rows


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--study.temperatures=[0.5]", "sampling.temperature: 0.6 is not among study.temperatures"),
        ("--study.learners=[pop]", "study.learners: there is no 'pop'"),
        ("--study.learner=pop", "study.learner: there is no 'pop'"),
        ("--study.further_seeds=3", "study.further_seeds: 3 is more than study.seeds, 2"),
        ("--study.bound_texts=0", "study.bound_texts: 0 is not at least 1"),
        ("--study.workers=0", "study.workers: 0 is not at least 1"),
        ("--study.other_profile=there.json", "study.other_profile: there is no file there.json"),
        (f"--study.other_profile={ROOT}/pyproject.toml", "not a profile"),
        ("--env=live", "algo: live training is for ppo"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, option: str, told: str) -> None:
    """One line that names the key; nothing is written."""
    with pytest.raises(UserError, match=told):
        conduct(tmp_path, option)
    assert not (tmp_path / "studies").exists()


def test_a_folder_that_is_no_study_is_left_alone(tmp_path: Path) -> None:
    """Even if it may be overwritten."""
    (tmp_path / "studies" / "small").mkdir(parents=True)
    (tmp_path / "studies" / "small" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a study"):
        conduct(tmp_path, "--overwrite")
    with pytest.raises(UserError, match="name the file"):
        study.main([])


def test_a_given_recording_has_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and the rest of the study is written."""
    assert bound_rows(SimpleNamespace(more={})) == []  # type: ignore[arg-type]
    assert capsys.readouterr().out.startswith("bound: left out")
