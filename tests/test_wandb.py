"""``--track wandb`` with no account, no network, a host that is mute, and a service that dies."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from socket import socket

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dispatch_rl import train
from dispatch_rl.config import TrackingConfig, TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.recorder import Recorder
from dispatch_rl.runs import RunFolder
from dispatch_rl.tracking.opening import flat, open_tracking
from tests import wandb_files
from tests.small_runs import ROOT, SMALL_PPO, arguments, killed_at_validation, lines, start

OFFLINE = ["--track=wandb", "--tracking.mode=offline", "--evaluation.prompts=0"]


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder`` as somebody without an account would, with nothing to answer questions with."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env |= {"PYTHONPATH": str(ROOT), "NETRC": str(folder / "no-netrc"), "HOME": str(folder), **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tracked(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """``train --track wandb`` without an account: the run's folder, what was printed, and where it was started."""
    folder = tmp_path_factory.mktemp("elsewhere")
    options = ["--track", "wandb", "--tracking.project=p", "--tracking.tags=[one, two]", "--evaluation.prompts=0"]
    done = python(folder, "-m", "dispatch_rl.train", *arguments(home, "tracked", *SMALL_PPO, *options))
    assert done.returncode == 0, done.stderr
    return home / "runs" / "tracked", done.stdout + done.stderr, folder


def offline_folder(run: Path) -> Path:
    """Return the only offline run of a run's folder."""
    (folder,) = run.glob("wandb/offline-run-*")
    return folder


def kept_id(run: Path) -> str:
    """Return which W&B run a run's folder belongs to."""
    identity: str = json.loads((run / "tracking.json").read_text())["wandb"]["id"]
    return identity


def test_without_an_account_a_run_is_kept_offline(tracked: tuple[Path, str, Path]) -> None:
    """One line says so; all of W&B's files are in the run's folder, none where the command was started, and nothing is a pickle."""
    run, output, started_in = tracked
    said = [line for line in output.splitlines() if "W&B" in line or "wandb" in line]
    assert said == [f"W&B: offline (No API key configured. Use `wandb login` to log in); `wandb sync {offline_folder(run)}` uploads it"]
    assert not (started_in / "wandb").exists()
    assert not [path for path in run.rglob("*") if path.suffix in (".pkl", ".pt", ".zip")]
    assert kept_id(run) == wandb_files.run_id(offline_folder(run))


def test_the_offline_run_holds_the_configuration(tracked: tuple[Path, str, Path]) -> None:
    """Flat, by the names of the options, and no more than that; project, name and tags too."""
    run, _, _ = tracked
    kept = wandb_files.config(offline_folder(run))
    assert (kept["ppo.total_steps"], kept["family.students.small.path"], kept["arms"]) == (512, "pocket:small", None)
    assert set(kept) == set(flat(asdict(TrainConfig())))
    (about,) = [record.run for record in wandb_files.records(offline_folder(run)) if record.HasField("run")]
    assert (about.project, about.display_name, list(about.tags)) == ("p", "tracked", ["one", "two"])


def test_the_offline_run_holds_the_history(tracked: tuple[Path, str, Path]) -> None:
    """All that is in ``metrics.jsonl``, by section, and what the learner says itself."""
    run, _, _ = tracked
    rows = {row["_step"]: row for row in wandb_files.history(offline_folder(run))}
    assert sorted(rows) == [128, 256, 384, 512]
    for line in lines(run):
        row = rows[line.pop("step")]
        for arm, share in line.pop("arm_shares", {}).items():
            assert row[f"arms/{arm}"] == share
        for key, value in line.items():
            names = (
                {f"validation/{key.removeprefix('validation_')}"} if key.startswith("validation_") else {f"decoding/{key}", f"time/{key}"}
            )
            assert value in [row.get(name) for name in names], key
    expected = {"rollout/ep_rew_mean", "decoding/reward_per_round", "decoding/policy_entropy_nats", "time/steps_per_second"}
    assert {*expected, "train/approx_kl", "validation/gap_closed", "decoding/draft_acceptance_rate"} <= set(rows[512])


def test_the_summary_is_about_the_best_policy(tracked: tuple[Path, str, Path]) -> None:
    """So that a sweep compares runs by what they yield, not by where they ended; a fixed arm that is kept instead is faster yet."""
    run, output, _ = tracked
    kept = wandb_files.summary(offline_folder(run))
    best = min(line["validation_latency_ms_per_token"] for line in lines(run) if "validation_latency_ms_per_token" in line)
    assert kept["validation/latency_ms_per_token"] <= best
    assert (kept["validation/latency_ms_per_token"] < best) == ("which is kept instead" in output)
    (row,) = [row for row in json.loads((run / "evaluation.json").read_text()) if row["policy"] == "learned"]
    assert kept["test_replay/latency_ms_per_token"] == row["latency_ms_per_token"]


def test_the_offline_run_holds_tables_and_figures(tracked: tuple[Path, str, Path]) -> None:
    """The rows of the evaluation, one row per text, and the pictures."""
    run, _, _ = tracked
    folder = offline_folder(run)
    last = wandb_files.history(folder)[-1]
    table = json.loads((folder / "files" / last["evaluation/replay/path"]).read_text())
    rows = json.loads((run / "evaluation.json").read_text())
    assert [line[table["columns"].index("policy")] for line in table["data"]] == [row["policy"] for row in rows]
    assert last["texts/replay/nrows"] == 4
    assert (folder / "files" / last["figures/latency_replay/path"]).read_bytes().startswith(b"\x89PNG")


def test_the_offline_run_holds_the_bundle(tracked: tuple[Path, str, Path]) -> None:
    """As an artifact whose files wait in the run's folder for `wandb sync`; they are those that export writes."""
    run, _, _ = tracked
    artifact = wandb_files.artifacts(offline_folder(run))["tracked-policy"]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert {"policy.safetensors", "dispatcher.json", "README.md"} <= set(files)
    assert files["policy.safetensors"].read_bytes() == (run / "best" / "policy.safetensors").read_bytes()
    every = [Path(entry.local_path) for one in wandb_files.artifacts(offline_folder(run)).values() for entry in one.manifest.contents]
    assert all(path.is_relative_to(run / "wandb") for path in every)
    assert json.loads(artifact.metadata)["rounds"] == 512


def test_a_resumed_run_is_the_same_wandb_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second part has the first one's id, and the rows before it too, which W&B may have lost in the kill."""
    killed_at_validation(2, lambda: start(home, "resumed", *SMALL_PPO, *OFFLINE), monkeypatch)
    run = home / "runs" / "resumed"
    before, first = kept_id(run), offline_folder(run)
    train.main([f"--resume={run}"])
    assert kept_id(run) == before
    (second,) = set(run.glob("wandb/offline-run-*")) - {first}
    assert [wandb_files.run_id(folder) for folder in (first, second)] == [before, before]
    steps = [[row["_step"] for row in wandb_files.history(folder) if "decoding/latency_ms_per_token" in row] for folder in (first, second)]
    assert steps == [[128, 256, 384], [128, 256, 384, 512]]
    assert wandb_files.config(first) == wandb_files.config(second)
    exits = [record.exit.exit_code for folder in (first, second) for record in wandb_files.records(folder) if record.HasField("exit")]
    assert exits == [1, 0]


def test_an_unknown_mode_is_refused_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything is recorded."""
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="WANDB_MODE: 'sometimes' is none of online"):
        start(home, "sometimes", *SMALL_PPO, "--track=wandb")
    assert not (home / "runs" / "sometimes").exists()


_BEGIN = """
import sys
from pathlib import Path
from dispatch_rl.config import TrackingConfig, TrainConfig
from dispatch_rl.runs import RunFolder
from dispatch_rl.tracking.opening import open_tracking
config = TrainConfig(track="wandb", tracking=TrackingConfig(init_timeout_s=0.5))
with open_tracking(RunFolder(Path(sys.argv[1])), config) as tracking:
    tracking.rewind(-1)
    tracking.log(1, {"decoding/latency_ms_per_token": 2.0})
"""


@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_a_host_that_cannot_be_reached_means_offline(answers: str, tmp_path: Path) -> None:
    """Closed, or open but mute, with a key set: the run is kept offline, under the id that a sweep's agent gave it."""
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if answers == "is silent":
            listening.listen()
        host = f"http://127.0.0.1:{listening.getsockname()[1]}"
        done = python(tmp_path, "-c", _BEGIN, "run", WANDB_BASE_URL=host, WANDB_API_KEY="a" * 40, WANDB_RUN_ID="given1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("W&B: offline (")
    assert done.stdout.count("\n") == 1
    assert kept_id(tmp_path / "run") == "given1"
    (row,) = wandb_files.history(offline_folder(tmp_path / "run"))
    assert (row["_step"], row["decoding/latency_ms_per_token"]) == (1, 2.0)


def test_tensorboard_is_told_the_same(tracked: tuple[Path, str, Path]) -> None:
    """Numbers at their steps, tables and figures."""
    run, _, _ = tracked
    (folder,) = (run / "tensorboard").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("validation/latency_ms_per_token")]
    expected = [(line["step"], line["validation_latency_ms_per_token"]) for line in lines(run) if "validation_latency_ms_per_token" in line]
    assert found == [(step, pytest.approx(value)) for step, value in expected]
    assert {"figures/latency_replay", "figures/gap_closed"} <= set(events.Tags()["images"])
    assert "evaluation/replay/text_summary" in events.Tags()["tensors"]


def test_a_training_whose_wandb_service_dies_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends as it would have, with one warning."""
    validate = Recorder.validate_now

    def cut(self: Recorder) -> float:
        wandb.teardown()
        return validate(self)

    monkeypatch.setattr(Recorder, "validate_now", cut)
    run = start(home, "cut", *SMALL_PPO, *OFFLINE)
    assert capsys.readouterr().err.count("warning: W&B fails and is left out from here on") == 1
    assert (run / "evaluation.json").is_file()
    assert len([line for line in lines(run) if "validation_latency_ms_per_token" in line]) == 4


def test_every_run_has_a_card(tracked: tuple[Path, str, Path]) -> None:
    """What was trained, on what, results, commands, and which W&B run it is."""
    run, _, _ = tracked
    card = (run / "README.md").read_text()
    (row,) = [row for row in json.loads((run / "evaluation.json").read_text()) if row["policy"] == "learned"]
    for expected in (
        "PPO on 512 rounds of replay",
        "`pocket:target`",
        "`medium-5`",
        f"| learned | replay | {row['latency_ms_per_token']:.3f}",
    ):
        assert expected in card
    assert f"python -m dispatch_rl.export {run} --output bundle" in card
    assert f"`p/{kept_id(run)}`" in card


def test_a_worse_last_validation_does_not_become_the_summary(tmp_path: Path) -> None:
    """The last row is closed before the summary is told."""
    config = TrainConfig(track="wandb", tracking=TrackingConfig(mode="offline"))
    with open_tracking(RunFolder(tmp_path), config) as tracking:
        tracking.rewind(-1)
        for step, latency_ms in ((1, 2.0), (2, 5.0)):
            tracking.log(step, {"validation/latency_ms_per_token": latency_ms})
        tracking.summarise({"validation/latency_ms_per_token": 2.0})
    assert wandb_files.summary(offline_folder(tmp_path))["validation/latency_ms_per_token"] == 2.0
    assert [row["_step"] for row in wandb_files.history(offline_folder(tmp_path))] == [1, 2]
