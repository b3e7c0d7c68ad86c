"""An evaluation in one mode keeps what was measured in the other, as long as it is of the same policy."""

import json
from pathlib import Path
from typing import Any

import pytest

from dispatch_rl import evaluate
from dispatch_rl.runs import RunFolder
from tests.small_runs import SMALL_PPO, start

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def run(home: Path) -> RunFolder:
    """A short training that was evaluated in replay and live."""
    return RunFolder.open(start(home, "again", *SMALL_PPO, "--overwrite=true"))


def rows_of(run: RunFolder) -> Rows:
    """Return the rows of the run by mode, in the order of the file."""
    found: Rows = {}
    for row in json.loads(run.evaluation.read_text()):
        found.setdefault(row["mode"], []).append(row)
    return found


def section(run: RunFolder, heading: str) -> str:
    """Return the part of the report under a heading."""
    return run.report.read_text().split(f"<h2>{heading}</h2>")[1].split("<h2>")[0].split("</section>")[0]


def test_the_other_modes_rows_stay(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last digit, with their part of the report and of the card; printed and given as rows is what was just measured."""
    before, live = rows_of(run), section(run, "Live")
    assert list(before) == ["replay", "live"]
    given = run.path / "given.json"
    capsys.readouterr()
    evaluate.main([str(run.path), "--mode=replay", "--seed=5", f"--json={given}"])
    told, after = capsys.readouterr().out, rows_of(run)
    assert "decoded live" not in told
    assert list(after) == ["replay", "live"]
    assert after["live"] == before["live"]
    assert after["replay"] == json.loads(given.read_text()) != before["replay"]
    assert section(run, "Live") == live
    assert "figure" in live
    assert "| learned | live |" in run.card.read_text()
    replay = section(run, "Replay")
    evaluate.main([str(run.path), "--mode=live", "--prompts=2"])
    assert rows_of(run)["replay"] == after["replay"]
    assert {row["num_texts"] for row in rows_of(run)["live"]} == {2}
    assert section(run, "Replay") == replay


def test_rows_of_another_policy_do_not_stay(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """A training that went on may have found a better one since; that its rows are left out is said."""
    other = next(path for step in (128, 256, 384, 512) if (path := run.checkpoint(step)).read_bytes() != run.best_policy.read_bytes())
    run.best_policy.write_bytes(other.read_bytes())
    evaluate.main([str(run.path), "--mode=replay"])
    assert f"{run.evaluation}: its rows of live are left out, for they may be of another policy" in capsys.readouterr().out
    assert list(rows_of(run)) == ["replay"]
    assert "<h2>Live</h2>" not in run.report.read_text()
