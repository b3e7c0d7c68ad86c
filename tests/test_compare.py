"""Several runs against one another on the same texts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispatch_rl import cli, compare, evaluate
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.replay.running import replay
from dispatch_rl.replay.sources import open_replay
from tests.small_runs import ROOT, SMALL_PPO, start

QUICK = ["--evaluation.prompts=0", "--validate_every=256"]


@pytest.fixture(scope="module")
def first(home: Path) -> Path:
    """A short training."""
    return start(home, "first", *SMALL_PPO, *QUICK)


@pytest.fixture(scope="module")
def others(home: Path) -> list[Path]:
    """Trainings with another seed and with other arms."""
    return [start(home, "seed", *SMALL_PPO, *QUICK, "--seed=7"), start(home, "arms", *SMALL_PPO, *QUICK, "--draft_length=3")]


@pytest.fixture(scope="module")
def rows(first: Path, others: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The rows of their comparison, by policy."""
    folder = tmp_path_factory.mktemp("compared")
    compare.main([*map(str, (first, *others)), f"--json={folder}/rows.json", f"--output={folder}/figure.png"])
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    return {row["policy"]: row for row in json.loads((folder / "rows.json").read_text())}


def test_a_run_compared_has_the_numbers_of_its_evaluation(first: Path, rows: dict[str, dict[str, Any]]) -> None:
    """Every one of them, interval included, but for the gap, whose ends depend on everybody's arms."""
    (stored,) = [row for row in json.loads((first / "evaluation.json").read_text()) if row["policy"] == "learned"]
    for key in set(stored) - {"policy", "gap_closed"}:
        assert rows["first"][key] == stored[key], key


def test_evaluating_again_gives_the_stored_rows_exactly(first: Path, others: list[Path]) -> None:
    """The best policy reproduces its stored evaluation in replay, to the last digit."""
    for run in (first, *others):
        stored = (run / "evaluation.json").read_bytes()
        evaluate.main([str(run), "--mode=replay"])
        assert (run / "evaluation.json").read_bytes() == stored


def test_differences_are_paired_by_text(first: Path, others: list[Path], rows: dict[str, dict[str, Any]]) -> None:
    """The difference is that of the latencies, and its interval that of the differences of each text."""
    for label in ("seed", "arms"):
        row = rows[label]
        assert row["difference_ms_per_token"] == pytest.approx(row["latency_ms_per_token"] - rows["first"]["latency_ms_per_token"])
        assert row["difference_ci_low"] <= row["difference_ms_per_token"] <= row["difference_ci_high"]
        assert row["baseline"] == "first"
    sources = [open_replay(cli.read_config(TrainConfig, run / "config.yaml")) for run in (first, others[0])]
    mine, theirs = (
        replay(source.world("test"), NetworkPolicy.load(run / "best" / "policy.safetensors"))
        for source, run in zip(sources, (first, others[0]), strict=True)
    )
    per_text = (theirs.latency_ms - mine.latency_ms) / mine.tokens
    assert per_text.min() <= rows["seed"]["difference_ci_low"]
    assert rows["seed"]["difference_ci_high"] <= per_text.max()
    assert rows["seed"]["difference_ms_per_token"] == pytest.approx(np.average(per_text, weights=mine.tokens))


def test_bounds_are_over_the_arms_of_all_runs(rows: dict[str, dict[str, Any]]) -> None:
    """So nobody is below the oracle, and everybody emits the same tokens."""
    told = {"first", "seed", "arms", "target alone", "best fixed arm"}
    assert told | {"oracle"} <= set(rows)
    assert all(rows[name]["latency_ms_per_token"] >= rows["oracle"]["latency_ms_per_token"] for name in told)
    assert len({rows[name]["num_emitted_tokens"] for name in told}) == 1
    assert {rows[name]["run"] is None for name in told - {"first", "seed", "arms"}} == {True}


def test_another_baseline_may_be_named(first: Path, others: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody is compared with it."""
    compare.main([str(first), str(others[0]), "--baseline=target alone", f"--output={tmp_path}/figure.png"])
    output = capsys.readouterr().out
    assert "first against target alone: " in output
    assert "seed against target alone: " in output


def test_runs_of_one_name_go_by_their_folders(first: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else tells them apart."""
    start(home, "first", *SMALL_PPO, *QUICK, "--seed=3", f"--runs={tmp_path}")
    compare.main([str(first), f"{tmp_path}/first", f"--output={tmp_path}/figure.png"])
    assert f"{tmp_path}/first against {first}: " in capsys.readouterr().out


def test_runs_on_other_texts_are_refused(first: Path, home: Path, tmp_path: Path) -> None:
    """In one line that says what differs; nothing is written."""
    other = start(home, "fewer", *SMALL_PPO, *QUICK, "--prompts.max_new_tokens=20", "--sampling.top_k=5")
    expected = (
        f"{other} cannot be compared with {first}: sampling.top_k is null there and 5 here; prompts.max_new_tokens is 24 there and 20 here"
    )
    with pytest.raises(UserError) as error:
        compare.main([str(first), str(other), f"--output={tmp_path}/figure.png"])
    assert str(error.value) == expected
    assert not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{first}"], "runs: name at least two"),
        (["{first}", "{first}/../first"], "is named twice"),
        (["{first}", "{first}/best"], "is not the folder of a run"),
        (["{first}", "{other}", "--baseline=huge"], "baseline: there is no 'huge'; there are first, seed, best fixed arm, target alone"),
        (["{first}", "{other}", "--output={first}"], "output: .* is a folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments: list[str], expected: str, first: Path, others: list[Path]) -> None:
    """Naming what is wrong."""
    with pytest.raises(UserError, match=expected):
        compare.main([argument.format(first=first, other=others[0]) for argument in arguments])


def test_a_run_without_a_policy_is_refused(first: Path, tmp_path: Path) -> None:
    """It was killed before its first validation."""
    (tmp_path / "config.yaml").write_bytes((first / "config.yaml").read_bytes())
    with pytest.raises(UserError, match=r"there is no best/policy.safetensors in it; has its training begun"):
        compare.main([str(first), str(tmp_path)])


def test_the_runs_that_the_readme_compares_have_the_same_texts() -> None:
    """As their files stand; the README's own test shortens both."""
    files = [ROOT / "configs" / name for name in ("pocket.yaml", "pocket-arms.yaml")]
    assert compare.differences(*(cli.read_config(TrainConfig, path) for path in files)) == []
