"""The folder of a run: whose it is, when the run is finished, and what its card says."""

import shlex
from pathlib import Path
from random import Random

import pytest
import yaml

from dispatch_rl import evaluate, train
from dispatch_rl.config import TrainConfig
from dispatch_rl.config.replay import ReplayConfig
from dispatch_rl.errors import UserError
from dispatch_rl.run_card import write_card
from dispatch_rl.runs import RunFolder
from tests.small_runs import SMALL_PPO, killed_at_validation, start
from tests.traces import made_up_profile, random_rows, write_traces


def begun(path: Path, *, overwrite: bool = False) -> RunFolder:
    """Return the folder of a run that has begun."""
    run = RunFolder.claim(path, overwrite=overwrite)
    run.begin("name: x\n", "a CPU", [], ["small-2"], overwrite=overwrite)
    return run


def test_a_training_is_finished_when_nothing_is_left_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated in the middle it still goes on; and nobody who trains by its configuration replaces it unasked."""
    options = (*SMALL_PPO, "--evaluation.prompts=0", "--overwrite=true")
    killed_at_validation(2, lambda: start(tmp_path, "cut", *options), monkeypatch)
    path = tmp_path / "runs" / "cut"
    run = RunFolder.open(path)
    evaluate.main([str(path)])
    assert "the training is not finished; measured is its best policy so far" in capsys.readouterr().out
    assert run.evaluation.is_file()
    assert f"--resume {path}" in run.card.read_text()
    train.main([f"--resume={path}"])
    assert "going on after 256" in capsys.readouterr().out
    assert run.finished
    assert f"--resume {path}" not in run.card.read_text()
    assert "python -m dispatch_rl.export" in run.card.read_text()
    train.main([f"--resume={path}"])
    assert "this run is finished" in capsys.readouterr().out
    assert yaml.safe_load(run.config.read_text())["overwrite"] is False
    with pytest.raises(UserError, match=r"name: .*/cut exists"):
        train.main([f"--config={run.config}"])


def test_who_begins_second_does_not_remove_the_first(tmp_path: Path) -> None:
    """Two trainings of one name, both claimed when there was nothing: the second is told, unless it is to overwrite."""
    path = tmp_path / "run"
    second = RunFolder.claim(path, overwrite=False)
    first = begun(path)
    first.metrics.write_text("{}\n")
    with pytest.raises(UserError, match=r"name: .*/run exists"):
        second.begin("name: y\n", "a CPU", [], [], overwrite=False)
    assert first.metrics.is_file()
    begun(path, overwrite=True)
    assert not first.metrics.is_file()


def test_the_command_can_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quoted, and by the module's name instead of its place."""
    monkeypatch.setattr("sys.argv", ["/somewhere/dispatch_rl/train.py", "--ppo.net_arch", "[64, 64]"])
    words = shlex.split((begun(tmp_path / "run").path / "command.txt").read_text())
    assert words == ["python", "-m", "dispatch_rl.train", "--ppo.net_arch", "[64, 64]"]


def test_the_card_of_a_recording_from_elsewhere_speaks_of_it(tmp_path: Path) -> None:
    """Not of prompts, temperatures and commands that are not its own."""
    traces = write_traces(tmp_path / "traces.jsonl", random_rows(Random(0), 8))
    made_up_profile(a=0.2, b=1.0).write(tmp_path / "costs.json")
    run = begun(tmp_path / "run")
    run.finish()
    write_card(run, TrainConfig(replay=ReplayConfig(traces=traces, profile=tmp_path / "costs.json")))
    text = run.card.read_text()
    assert f"those of the recording `{traces}`, sampled as it was made" in text
    assert "temperature" not in text
    assert "--env live" not in text


@pytest.mark.parametrize(("algo", "learner"), [("ppo", "--name tuned  #"), ("policy_iteration", "--algo ppo --ppo.net_arch '[64]'  #")])
def test_the_card_offers_to_fine_tune_with_the_runs_own_arms(tmp_path: Path, algo: str, learner: str) -> None:
    """And with a network of the same widths, by the learner that can."""
    run = begun(tmp_path / "run")
    run.finish()
    write_card(run, TrainConfig(algo=algo))  # type: ignore[arg-type]
    line = next(line for line in run.card.read_text().splitlines() if "--env live" in line)
    assert f"--config {run.config} --env live --init {run.path}" in line
    assert learner in line
