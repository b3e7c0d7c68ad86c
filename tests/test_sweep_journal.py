"""The journal of a sweep: who gets which run, what is drawn, and what is left of it after a kill. Nothing is trained here."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from dispatch_rl import sweep
from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.file import read_sweep
from dispatch_rl.sweeping.study import SweepStudy, mend
from tests.sweeps import write


def studies(folder: Path, **changes: Any) -> tuple[SweepStudy, SweepStudy]:
    """Return the same sweep as two processes see it."""
    read = read_sweep(write(folder, **changes))
    return SweepStudy(read, folder / "runs", 0, 3), SweepStudy(read, folder / "runs", 0, 3)


def test_two_processes_share_the_runs(tmp_path: Path) -> None:
    """The first run goes ahead alone; then each has its own; a run whose owner died goes to who comes first; three are three."""
    one, two = studies(tmp_path)
    assert not one.is_over()
    first = one.claim()
    assert first is not None
    assert two.claim() is None
    one.report(first, [5.0])
    second = two.claim()
    assert second is not None
    assert (first.name, second.name, first.values == second.values) == ("run-000", "run-001", False)
    first.lock.release()  # as the system does when its owner is killed
    again = two.claim()
    assert again is not None
    assert (again.name, again.resumed) == ("run-000", True)
    assert {p.name: v for p, v in again.values.items()} == {p.name: v for p, v in first.values.items()}
    two.tell(again, TrialState.COMPLETE, [5.0, 4.0])
    third = one.claim()
    assert third is not None
    assert (third.name, one.claim(), two.claim()) == ("run-002", None, None)
    two.tell(second, TrialState.FAIL, [])
    assert not one.is_over()
    one.tell(third, TrialState.PRUNED, [9.0])
    assert one.is_over()
    assert two.is_over()


def test_what_is_drawn_does_not_depend_on_who_draws(tmp_path: Path) -> None:
    """A process that draws every second run draws what a lone one would have drawn."""
    one, two = studies(tmp_path)
    lone = SweepStudy(one.sweep, None, 0, 3)
    drawn = [study.draw().params for study in (one, two, one)]
    assert drawn == [lone.draw().params for _ in range(3)]
    assert len({str(params) for params in drawn}) == 3


def test_a_reached_target_ends_the_sweep(tmp_path: Path) -> None:
    """No run is begun any more."""
    one, _ = studies(tmp_path, metric={"name": "x/y", "goal": "maximize", "target": 0.8})
    run = one.claim()
    assert run is not None
    one.report(run, [0.7])
    assert not one._enough(one.trials())
    one.report(run, [0.7, 0.8])
    assert one.claim() is None


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    """Other parameters, or no sweep at all; another run_cap is no other sweep."""
    studies(tmp_path)
    studies(tmp_path, run_cap=9)
    with pytest.raises(UserError, match="holds a sweep with another method and parameters; choose another --name"):
        studies(tmp_path, method="grid", parameters={"seed": {"values": [1]}})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(UserError, match="thesis exists and is not the folder of a sweep"):
        sweep.main([str(write(tmp_path)), f"--runs={tmp_path}", "--name=thesis"])


def test_a_journal_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """What the last line was to say is lost, nothing else."""
    one, _ = studies(tmp_path)
    one.draw()
    journal = tmp_path / "runs" / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker')
    _, two = studies(tmp_path)
    assert journal.read_bytes().startswith(whole + b"{")
    two.draw()
    assert len(two.trials()) == 2
    mend(tmp_path / "nowhere")
