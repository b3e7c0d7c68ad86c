"""Sweep files in W&B's language: what they may say, what is drawn, what an agent writes, who is stopped. Nothing is trained here."""

import math
import os
import shlex
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dispatch_rl import cli, sweep, train
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.sweeping import command
from dispatch_rl.sweeping.agent import run_name
from dispatch_rl.sweeping.parameters import read_parameters
from dispatch_rl.sweeping.space import Parameter
from dispatch_rl.sweeping.stopping import read_stopping
from tests.sweeps import write

ROOT = Path(__file__).resolve().parents[1]


def parameter(**settings: Any) -> Parameter:
    """Return the one parameter with these settings."""
    (found,) = read_parameters({"x": settings}, "file")
    return found


@pytest.mark.parametrize(
    ("settings", "drawn", "value"),
    [
        ({"value": [64, 64]}, None, [64, 64]),
        ({"values": [[64, 64], None]}, "null", None),
        ({"values": ["a", "b", "c"], "probabilities": [0.5, 0.2, 0.3]}, 0.69, "b"),
        ({"values": ["a", "b", "c"], "probabilities": [0.5, 0.2, 0.3]}, 0.71, "c"),
        ({"min": 2, "max": 5}, 3, 3),
        ({"min": 0, "max": 1.5}, 0.25, 0.25),
        ({"min": 0, "max": 1.5}, 1.0, 1),  # W&B's server makes it an integer
        ({"distribution": "q_uniform", "min": 0, "max": 10}, 6.6, 7),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1}, 0.31, 0.3),
        ({"distribution": "q_log_uniform_values", "min": 32, "max": 512, "q": 32}, 100.0, 96),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, 0.5, 3),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, 0.9772498680518208, 7),  # two deviations above
        ({"distribution": "log_normal"}, 0.5, 1),
        ({"distribution": "q_log_normal", "mu": 2, "q": 0.5}, 0.5, 7.5),  # e**2 is 7.389
    ],
)
def test_values_come_out_as_wandb_defines_them(settings: dict[str, Any], drawn: Any, value: Any) -> None:
    """By hand, from W&B's definitions."""
    found = parameter(**settings).value(drawn)
    assert found == pytest.approx(value) if isinstance(value, float) else found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("settings", "low", "high", "log"),
    [
        ({"min": 1.0, "max": 3.0}, 1, 3, False),
        ({"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-2}, 1e-4, 1e-2, True),
        ({"distribution": "log_uniform", "min": -2, "max": 1}, math.exp(-2), math.e, True),
        ({"distribution": "inv_log_uniform", "min": -2, "max": 1}, 1 / math.e, math.exp(2), True),
        ({"distribution": "inv_log_uniform_values", "min": 0.1, "max": 4}, 0.1, 4, True),
    ],
)
def test_ranges_are_drawn_from_as_wandb_defines_them(settings: dict[str, Any], low: float, high: float, log: bool) -> None:
    """``log_uniform`` takes logarithms, its ``_values`` sister the values themselves."""
    made: Any = parameter(**settings).distribution()
    assert (made.low, made.high, made.log) == (pytest.approx(low), pytest.approx(high), log)


def test_a_grid_lists_all_values() -> None:
    """Of lists, integers and steps; like W&B's, steps end below ``max``; there is no grid of what is continuous."""
    assert parameter(values=[3, 1]).grid() == [3, 1]
    assert parameter(min=2, max=4).grid() == [2, 3, 4]
    assert parameter(distribution="q_uniform", min=0.1, max=0.5, q=0.1).grid() == [0.1, 0.2, 0.3, 0.4]
    assert parameter(min=2.0, max=4.0).grid() is None


def test_arguments_are_those_of_an_agent(tmp_path: Path) -> None:
    """Our words are the ones that wandb's own code makes, and ``train`` reads from them what the file meant."""
    values = {
        "ppo": {"learning_rate": 1e-05, "batch_size": None},
        "ppo.net_arch": [64, 64],
        "threshold.students": ["small", "it's", "large"],
        "prompts.source": "my texts.txt",
        "init": None,
        "overwrite": True,
        "seed": 3,
    }
    theirs = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    ours = command.arguments(values)
    assert ours == {key: theirs[key] for key in ours}
    parser = cli.make_parser(TrainConfig, "train", "")
    for macro in ours.values():
        config = cli.build(TrainConfig, parser, cli.parse(parser, ["--ppo.rollout_steps=512", *macro]))
        assert (config.ppo.learning_rate, config.ppo.batch_size, config.ppo.rollout_steps) == (1e-05, None, 512)
        assert (config.ppo.net_arch, config.threshold.students) == ([64, 64], ["small", "it's", "large"])
        assert (config.prompts.source, config.init, config.overwrite, config.seed) == ("my texts.txt", None, True, 3)


def test_commands_are_those_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Macros, variables of the environment, and nested parameters as one mapping."""
    monkeypatch.setenv("TEXTS", "8")
    words = ["${env}", "OMP_NUM_THREADS=1", "python", "-m", "${program}", "--num_envs=${envvar:TEXTS}", "--seed=${envvar:NOT_THERE}"]
    found = command.expand([*words, "${args}"], "dispatch_rl.train", {"ppo": {"gamma": 0.9}}, "file")
    filled = create_sweep_command([*words])
    assert found == ["/usr/bin/env", *filled[1:4], "dispatch_rl.train", "--num_envs=8", "--seed=NOT_THERE", "--ppo={'gamma': 0.9}"]
    assert filled[5:] == found[5:7]


def test_runs_of_an_agent_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An agent tells runs apart by a variable only; outside a sweep that variable means nothing."""
    assert run_name("pocket", {"WANDB_RUN_ID": "a1b2"}) == "pocket"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "a1b2")
    taken = tmp_path / "pocket-a1b2"
    taken.mkdir()
    for empty in (taken / "config.yaml", tmp_path / "traces.jsonl"):
        empty.touch()
    with pytest.raises(UserError, match=f"name: {taken} exists"):
        train.main([f"--runs={tmp_path}", f"--replay.traces={tmp_path}/traces.jsonl"])


RUNS = [[10.0, 9.0], [10.0, 10.0], [10.0, 8.0, 8.0], [10.0, 7.0, 7.0], [10.0, 6.0, 6.0], [5.0, 9.5]]


@pytest.mark.parametrize(
    ("rule", "stopped"),
    [
        # Bands 1 and 2. The second values are 6, 7, 8, 9, 9.5, 10; the fourth of them is 9.
        ({"max_iter": 5, "eta": 2, "s": 2}, [1]),
        ({"max_iter": 5, "eta": 2, "s": 2, "strict": True}, [1, 5]),
        ({"max_iter": 5, "eta": 2.5, "s": 1, "strict": True}, [0, 1, 5]),  # the third of them is 8
        ({"min_iter": 3, "eta": 3}, [2]),  # the third values are 6, 7, 8; the second of them is 7
        ({"min_iter": 4}, []),
    ],
)
def test_who_is_stopped(rule: dict[str, Any], stopped: list[int]) -> None:
    """By hand: whoever is worse than the run at a share of 1 / eta; if not strict, whoever always was."""
    hyperband = read_stopping({"type": "hyperband", **rule}, "file")
    others = [[other for other in RUNS if other is not run] for run in RUNS]
    assert [i for i, run in enumerate(RUNS) if hyperband.stops(run, others[i])] == stopped


def test_a_lone_run_is_never_stopped() -> None:
    """There is nobody to compare it with."""
    assert not read_stopping({"type": "hyperband", "min_iter": 1, "strict": True}, "file").stops([5.0, 9.0], [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "bayess"}, "method: 'bayess' is not offered; did you mean bayes?"),
        ({"method": None}, "method: None is not offered; there are bayes, grid, random"),
        ({"metrics": []}, "metrics: only W&B's server can do this"),
        ({"parametres": {}}, "parametres: there is no such key; did you mean parameters?"),
        ({"metric": None}, "metric: it needs a name"),
        ({"metric": {"name": "x", "goal": "min"}}, "metric.goal: 'min' is not minimize or maximize"),
        ({"metric": {"name": "x", "gaol": "minimize"}}, "metric.gaol: there is no such key; did you mean goal?"),
        ({"metric": {"name": "x", "impute": "worst"}}, "metric.impute: only W&B's server can do this"),
        ({"run_cap": 0}, "run_cap: 0 is not an integer of at least 1"),
        ({"parameters": None}, "parameters: it holds no parameters"),
        ({"parameters": {"ppo.gama": {"value": 1}}}, "parameters.ppo.gama: dispatch_rl.train has no such option; did you mean ppo.gamma?"),
        (
            {"parameters": {"learning_rte": {"value": 1}}},
            "did you mean dqn.learning_rate or policy_iteration.learning_rate or",
        ),
        ({"parameters": {"ppo": {"parameters": {"gama": {"value": 1}}}}}, "parameters.ppo.parameters.gama: dispatch_rl.train has no such"),
        ({"parameters": {"name": {"value": "x"}}}, "parameters.name: a sweep names its runs itself"),
        ({"parameters": {"seed": {"min": 3, "max": 3}}}, "parameters.seed.min: 3 is not below max, 3"),
        ({"parameters": {"seed": {"min": 3, "max": 1}}}, "parameters.seed.min: 3 is not below max, 1"),
        ({"parameters": {"seed": {"mim": 3, "max": 1}}}, "parameters.seed.mim: there is no such key here; did you mean"),
        ({"parameters": {"ppo.gamma": {"min": "1e-5", "max": 1}}}, "parameters.ppo.gamma.min: '1e-5' is not a number (YAML takes 1e-5"),
        ({"parameters": {"ppo.gamma": {}}}, "parameters.ppo.gamma: it needs value, values, min and max"),
        ({"parameters": {"ppo.gamma": 3}}, "parameters.ppo.gamma: 3 is not a mapping"),
        ({"parameters": {"ppo.gamma": {"values": []}}}, "parameters.ppo.gamma.values: [] is not a list with at least one value"),
        ({"parameters": {"ppo.gamma": {"values": [0.9, 0.9]}}}, "parameters.ppo.gamma.values: listed twice: 0.9"),
        ({"parameters": {"tracking.group": {"value": date(2024, 1, 1)}}}, "parameters.tracking.group.value: Object of type date"),
        (
            {"parameters": {"seed": {"values": [1, 2], "probabilities": [1]}}},
            "parameters.seed.probabilities: [1] is not one number per value",
        ),
        ({"parameters": {"seed": {"values": [1, 2], "probabilities": [1, 1]}}}, "parameters.seed.probabilities: they add up to 2"),
        ({"parameters": {"seed": {"values": [1, "many"]}}}, "parameters.seed: 'many' is not what the option takes"),
        ({"parameters": {"seed": {"min": 0.5, "max": 3.5}}}, "parameters.seed: 0.5 is not what the option takes"),
        ({"parameters": {"ppo.gamma": {"distribution": "beta"}}}, "parameters.ppo.gamma.distribution: 'beta' is not offered"),
        ({"parameters": {"ppo.gamma": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "ppo.gamma.min: 0 is not above 0"),
        ({"parameters": {"ppo.gamma": {"distribution": "normal", "sigma": -1}}}, "parameters.ppo.gamma.sigma: -1 is below 0"),
        ({"method": "grid"}, "parameters.ppo.gamma: a grid needs value, values, int_uniform or q_uniform, not uniform"),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type: 'median' is not hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: it needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "early_terminate.s: max_iter needs it"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1}}, "early_terminate.eta: 1 is not above 1"),
        (
            {"early_terminate": {"type": "hyperband", "min_itr": 3}},
            "early_terminate.min_itr: there is no such key here; did you mean min_iter?",
        ),
        ({"command": ["python", "${args}"]}, "command: it does not run '-m dispatch_rl.train'"),
        ({"command": None, "program": "train.py"}, "command: it does not run '-m dispatch_rl.train'"),
        ({"command": ["python", "-m", "dispatch_rl.train", "${arg}"]}, "command: the macro ${arg} cannot be used"),
        (
            {"command": ["python", "-m", "dispatch_rl.train", "--num_env=3"]},
            "command: unrecognized arguments: --num_env=3; did you mean num_envs?",
        ),
        ({"command": ["python", "-m", "dispatch_rl.train", "--config=nowhere.yaml"]}, "nowhere.yaml"),
    ],
)
def test_bad_files_are_one_line(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """With the file and the key, and before a folder is made."""
    path = write(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        sweep.main([str(path), f"--runs={tmp_path}/runs"])
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert expected in line
    assert "\n" not in line
    assert not (tmp_path / "runs").exists()


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    """Missing, no YAML, no mapping; and a sweep without an end."""
    for text, expected in (("a: [", "it is not YAML"), ("- a", "it is not a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=expected):
            sweep.main([f"{tmp_path}/bad.yaml"])
    with pytest.raises(UserError, match=r"file: there is no file nowhere\.yaml"):
        sweep.main(["nowhere.yaml"])
    with pytest.raises(UserError, match="count: random has no end; give --count N"):
        sweep.main([str(write(tmp_path, run_cap=None)), f"--runs={tmp_path}/runs"])


def test_a_dry_run_prints_the_commands_of_a_grid_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, the last parameter the quickest; nothing is written."""
    parameters = {"ppo.n_epochs": {"min": 1, "max": 2}, "ppo.net_arch": {"values": [[8], [64, 64]]}, "seed": {"value": 3}}
    path = write(tmp_path, method="grid", parameters=parameters, run_cap=None)
    sweep.main([str(path), "--dry_run", f"--runs={tmp_path}/runs"])
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[5:8] for line in lines] == [
        [f"--ppo.n_epochs={epochs}", f"--ppo.net_arch={widths}", "--seed=3"] for epochs in (1, 2) for widths in ([8], [64, 64])
    ]
    assert lines[3][8:] == [f"--runs={tmp_path}/runs/sweep", "--name=run-003", "--track=None"]
    assert os.listdir(tmp_path) == ["sweep.yaml"]


def test_the_file_that_ships_is_for_both(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's keys are all there; its commands read, by ``train``, what they say."""
    monkeypatch.chdir(ROOT)
    content = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
    assert {"program", "method", "metric", "parameters", "command", "early_terminate"} <= set(content)
    sweep.main(["configs/sweep.yaml", "--dry_run", "--count=2"])
    parser = cli.make_parser(TrainConfig, "train", "")
    for line in capsys.readouterr().out.splitlines():
        config = cli.build(TrainConfig, parser, cli.parse(parser, command.parts(shlex.split(line))[1]))
        assert (config.prompts.max_new_tokens, config.evaluation.prompts) == (128, 0)
        assert f"--ppo.learning_rate={config.ppo.learning_rate}" in line


def test_no_band_is_passed_unseen() -> None:
    """A run that is faster than the looks at it is compared at every band since the last; at those before, it was."""
    hyperband = read_stopping({"type": "hyperband", "min_iter": 3, "strict": True}, "file")
    slow, better = [8.0] * 20, [5.0] * 8
    assert [hyperband.stops(slow, [better], seen) for seen in (0, 2, 3, 8)] == [True, True, False, False]
    assert not hyperband.stops(better, [slow], 0)
