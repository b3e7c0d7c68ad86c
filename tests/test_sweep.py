"""Sweeps that train: killed, resumed and shared; stopped early; and the same file under the agent of W&B."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

import pytest
from wandb.wandb_agent import Agent

from dispatch_rl import checkpoints, sweep
from dispatch_rl.errors import UserError
from tests.sweeps import write
from tests.traces import made_up_profile, random_rows, write_traces

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--evaluation.prompts=0",
    "--num_envs=8",
    "--ppo.rollout_steps=128",
    "--ppo.batch_size=64",
    "--validate_every=128",
    "--draft_length=3",
]


def command(folder: Path, steps: int) -> list[str]:
    """Write a recording and its costs, and return the command of a sweep that trains on them."""
    traces = write_traces(folder / "traces.jsonl", random_rows(Random(0), 40))
    made_up_profile(a=0.2, b=1.0).write(folder / "costs.json")
    options = [
        f"--replay.traces={traces}",
        f"--replay.profile={folder}/costs.json",
        *SMALL,
        "--draft_length=3",
        f"--ppo.total_steps={steps}",
    ]
    return ["${env}", "${interpreter}", "-m", "${program}", *options, f"--runs={folder}/runs", "${args}"]


_HANGS_S = 600
"""Nothing here takes so long."""


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does, however busy the machine is."""
    deadline = monotonic() + _HANGS_S
    while not condition():
        assert monotonic() < deadline, "it hangs"
        sleep(0.05)


def start(*arguments: str) -> "subprocess.Popen[str]":
    """Start a sweep as a user does."""
    words = [sys.executable, "-m", "dispatch_rl.sweep", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(process: "subprocess.Popen[str]") -> list[int]:
    """Return the processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children of a process are found in /proc")
def test_a_killed_sweep_goes_on_and_two_processes_share_it(tmp_path: Path) -> None:
    """Killed with its training in the middle of the second run; then two processes end it: every run once, the second from where it was."""
    parameters = {"ppo.learning_rate": {"value": 0.003}, "ppo.net_arch": {"values": [[8], [8, 8], [16]]}}
    path = write(tmp_path, method="grid", parameters=parameters, command=command(tmp_path, 2048))
    arguments = [str(path), f"--runs={tmp_path}", "--name=shared", f"--json={tmp_path}/rows.json"]
    folder = tmp_path / "shared"
    first = start(*arguments)
    until(lambda: (folder / "run-001" / "state" / "state.json").is_file() or first.poll() is not None)
    assert first.poll() is None, first.communicate()[0]
    training = children(first)
    for pid in (first.pid, *training):
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    assert not (folder / "run-001" / "evaluation.json").exists()

    both = [start(*arguments), start(*arguments)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert "run-001 goes on" in "".join(told)
    assert all(text.count(" finished ") >= 3 and "best: " in text for text in told)  # both tables are complete
    assert "going on after" in (folder / "run-001.log").read_text()
    assert [(folder / f"run-00{n}.log").read_text().count("$ /") for n in range(3)] == [1, 2, 1]

    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["state"] for row in rows} == {"finished"}
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)
    assert sorted(row["parameters"]["ppo.net_arch"] for row in rows) == [[8], [8, 8], [16]]
    validations = [json.loads(line) for line in (folder / "run-001" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in validations if "validation_latency_ms_per_token" in row] == list(range(128, 2049, 128))
    assert (folder / "parallel_coordinates.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_fail_or_lag_do_not_end_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot train is one line with the place of its log; one that learns nothing is stopped, and closes what it has open."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    parameters = {"ppo": {"values": [{"learning_rate": 0.003}, {"batch_size": 999}, {"learning_rate": 1e-9, "total_steps": 10**5}]}}
    early = {"type": "hyperband", "min_iter": 3, "strict": True}
    path = write(tmp_path, method="grid", parameters=parameters, early_terminate=early, command=command(tmp_path, 1024))
    sweep.main([str(path), f"--runs={tmp_path}"])
    told = capsys.readouterr().out
    rows = {Path(row["run"]).name: row for row in json.loads((tmp_path / "sweep" / "sweep.json").read_text())}
    assert [rows[f"run-00{n}"]["state"] for n in range(3)] == ["finished", "failed", "stopped early"]
    assert rows["run-000"]["validations"] == 8
    assert list(rows) == ["run-000", "run-002", "run-001"]
    log = tmp_path / "sweep" / "run-001.log"
    assert f"run-001 failed with status 2: error: ppo.batch_size: 999 is more than ppo.rollout_steps, 128; its log is {log}" in told
    assert (tmp_path / "sweep" / "run-002.log").read_text().endswith("terminated\n")
    assert (tmp_path / "sweep" / "run-002" / "best" / "policy.safetensors").is_file()
    sweep.main([str(path), f"--runs={tmp_path}"])  # nothing is left to do
    assert "begins" not in capsys.readouterr().out


def test_a_metric_that_is_not_written_ends_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first run, with the names that there are; when all runs fail, the sweep has failed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = write(tmp_path, metric={"name": "validation/speed"}, parameters={"seed": {"values": [1, 2]}}, command=command(tmp_path, 256))
    with pytest.raises(UserError, match=r"metric.name: trainings write no validation/speed; .* validation_latency_ms_per_token"):
        sweep.main([str(path), f"--runs={tmp_path}", "--count=2"])
    path = write(tmp_path, parameters={"num_envs": {"value": 7}}, command=command(tmp_path, 256))
    with pytest.raises(UserError, match=r"all runs of .*failing failed"):
        sweep.main([str(path), f"--runs={tmp_path}", "--name=failing", "--count=1"])


def test_the_agent_of_wandb_starts_and_stops_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own code, without its server. A run that it stops has not failed: three failures would end the agent."""
    for name, value in {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": "", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    agent: Any = Agent(None, None, sweep_id="sweep")
    agent._sweep_command = command(tmp_path, 10**9)
    values = {"ppo.net_arch": [8, 8], "ppo": {"learning_rate": 1e-05, "gamma": 0.9}, "reward.reference_ms_per_token": None}
    arguments = {key: {"value": value} for key, value in values.items()}
    agent._process_command({"type": "run", "run_id": "a1b2", "program": "dispatch_rl.train", "args": arguments})
    run = tmp_path / "runs" / "pocket-a1b2"
    process = agent._run_processes["a1b2"]
    until(lambda: (run / "state" / "state.json").is_file() or process.poll() is not None)
    agent._process_command({"type": "stop", "run_id": "a1b2"})
    assert process.wait(60) == -signal.SIGTERM
    kept = checkpoints.find(run / "state")
    assert kept is not None
    assert json.loads((kept / "state.json").read_text())["num_timesteps"] >= 128
