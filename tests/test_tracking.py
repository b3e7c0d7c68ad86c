"""Following a run: what is told to whom, trackers that fail, and the card of a run."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dispatch_rl.config import TrackingConfig, TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.runs import RunFolder
from dispatch_rl.tracking.base import Tracking
from dispatch_rl.tracking.lines import LinesTracker, told
from dispatch_rl.tracking.opening import flat, open_tracking
from dispatch_rl.tracking.tensorboard import TensorBoardTracker
from tests.small_runs import SMALL_PPO, killed_at_validation, lines, start


@pytest.mark.parametrize(("option", "variable"), [("off", ""), (None, "disabled")])
def test_off_leaves_nothing(option: Any, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder nor an id, whether the configuration or W&B's own variable says so; the other trackers work."""
    monkeypatch.setenv("WANDB_MODE", variable)
    config = TrainConfig(track="wandb", tracking=TrackingConfig(mode=option))
    with open_tracking(RunFolder(tmp_path), config) as tracking:
        tracking.rewind(-1)
        tracking.log(1, {"decoding/latency_ms_per_token": 2.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_tensorboard_forgets_what_a_resumed_run_tells_again(tmp_path: Path) -> None:
    """Events behind the last state are not there twice."""
    for behind, values in ((-1, {1: 0.1, 2: 0.2, 3: 0.3}), (1, {2: 2.0, 3: 3.0})):
        tracker = TensorBoardTracker(tmp_path)
        tracker.rewind(behind)
        for step, value in values.items():
            tracker.log(step, {"a/b": value})
        tracker.finish(False)
        time.sleep(1)  # files are read in the order of their names: the second, then the count of writers as text, 10 before 9
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("a/b")] == [(1, 0.1), (2, 2.0), (3, 3.0)]


def test_what_was_told_can_be_told_again(tmp_path: Path) -> None:
    """``metrics.jsonl`` keeps its own names, from which those of the sections come back."""
    values = {"time/seconds": 0.5, "time/steps_per_second": 9, "decoding/reward_per_round": 1.5, "arms/small-5": 0.25, "arms/none": 0.75}
    tracker = LinesTracker(RunFolder(tmp_path))
    tracker.log(8, values)
    tracker.log(8, {"validation/latency_ms_per_token": 2.5})
    tracker.log(8, {"rollout/ep_rew_mean": 1.0})
    first = {"step": 8, "seconds": 0.5, "steps_per_second": 9, "reward_per_round": 1.5, "arm_shares": {"small-5": 0.25, "none": 0.75}}
    assert lines(tmp_path) == [first, {"step": 8, "validation_latency_ms_per_token": 2.5}]
    assert list(told(RunFolder(tmp_path))) == [(8, values), (8, {"validation/latency_ms_per_token": 2.5})]


class Failing:
    """A tracker that works until it is told a second number."""

    title = "that one"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def rewind(self, step: int) -> None:
        self.calls.append("rewind")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls.append("log")
        if self.calls.count("log") == 2:
            raise ConnectionResetError("the line is cut\nin two")

    def summarise(self, values: Mapping[str, float]) -> None:
        self.calls.append("summarise")

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append("table")

    def image(self, step: int, name: str, png: bytes) -> None:
        self.calls.append("image")

    def bundle(self, name: str, folder: Path, about: Mapping[str, Any]) -> None:
        self.calls.append("bundle")

    def finish(self, failed: bool) -> None:
        self.calls.append(f"finish {failed}")
        raise OSError("it is too late")


def test_a_tracker_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One warning line; the run goes on, and its own record misses nothing."""
    failing = Failing()
    with Tracking(LinesTracker(RunFolder(tmp_path)), [failing]) as tracking:
        tracking.rewind(-1)
        for step in range(4):
            tracking.log(step, {"decoding/x": step})
        tracking.table("t", [])
    assert failing.calls == ["rewind", "log", "log", "finish True"]
    assert capsys.readouterr().err == "warning: that one fails and is left out from here on: the line is cut\n"
    assert [line["x"] for line in lines(tmp_path)] == [0, 1, 2, 3]


def test_options_are_dotted() -> None:
    """Nested sections become the names of options; lists and empty sections stay whole."""
    assert flat({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": Path("x")}) == {"a.b": 1, "a.c.d": [1, 2], "e": {}, "f": "x"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"init_timeout_s": 0.0}, "tracking.init_timeout_s: 0.0 is not above 0"), ({"tags": [""]}, r"tracking.tags: \[''\] has a tag")],
)
def test_bad_settings_are_one_line(values: dict[str, Any], expected: str) -> None:
    """Naming the key."""
    with pytest.raises(UserError, match=expected):
        TrackingConfig(**values)


def test_the_card_of_an_unfinished_run_says_how_to_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the folder after a kill."""
    killed_at_validation(1, lambda: start(home, "unfinished", *SMALL_PPO, "--evaluation.prompts=0"), monkeypatch)
    assert f"python -m dispatch_rl.train --resume {home}/runs/unfinished" in (home / "runs" / "unfinished" / "README.md").read_text()
