"""``--help`` of every command: all keys, each with type, default and meaning; and what is said of a mistyped one."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from dispatch_rl import bench, calibrate, compare, doctor, evaluate, export, generate, profile, record, sweep, train
from dispatch_rl.bench.decode import DecodeBenchConfig
from dispatch_rl.bench.endurance import EnduranceConfig
from dispatch_rl.bench.kernels import KernelBenchConfig
from dispatch_rl.bench.replay import ReplayBenchConfig
from dispatch_rl.config import TrainConfig
from dispatch_rl.pocket import __main__ as pocket
from dispatch_rl.pocket import card
from dispatch_rl.pocket.recipe import Recipe

Main = Callable[[Sequence[str]], None]

COMMANDS: dict[str, tuple[Main, list[str], type]] = {
    "train": (train.main, [], TrainConfig),
    "evaluate": (evaluate.main, ["runs/x"], evaluate.EvaluateConfig),
    "compare": (compare.main, ["runs/x", "runs/y"], compare.CompareConfig),
    "export": (export.main, ["runs/x"], export.ExportConfig),
    "generate": (generate.main, [], generate.GenerateConfig),
    "record": (record.main, [], record.RecordConfig),
    "profile": (profile.main, [], profile.ProfileConfig),
    "calibrate": (calibrate.main, [], calibrate.CalibrateConfig),
    "sweep": (sweep.main, ["sweep.yaml"], sweep.SweepConfig),
    "doctor": (doctor.main, [], doctor.DoctorConfig),
    "pocket": (pocket.main, [], Recipe),
    "pocket.card": (card.main, [], card.CardConfig),
    "bench decode": (bench.main, ["decode"], DecodeBenchConfig),
    "bench replay": (bench.main, ["replay"], ReplayBenchConfig),
    "bench endurance": (bench.main, ["endurance"], EnduranceConfig),
    "bench kernels": (bench.main, ["kernels"], KernelBenchConfig),
}


def keys(config_class: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key of a configuration class."""
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from keys(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def entries(text: str) -> dict[str, str]:
    """Return what a help text says of every option, in one line each."""
    parts = re.split(r"\n +(?=--)|\n\n", text)
    return {match[1]: " ".join(part.split()) for part in parts if (match := re.match(r"--([\w.]+)", part))}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Meaning, type and default of every key of the command's configuration."""
    main, words, config_class = COMMANDS[command]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    told = entries(capsys.readouterr().out)
    for key in keys(config_class):
        entry = told[key]
        meaning, typed = re.split(r"\((?:required, )?type: ", entry)
        assert re.fullmatch(r".+, default: .+\)", typed), entry
        assert "<class" not in typed
        # Before the meaning stand the names of the option and of its value, or the values that there are.
        said = re.sub(r"--[\w.+]+,?|\{\S+\}|\b[A-Z_]{2,}\b", "", meaning)
        assert re.search(r"[A-Za-z]{4}", said), f"--{key} is not explained: {entry}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_key_suggests_the_right_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    main, words, config_class = COMMANDS[command]
    right = max(keys(config_class), key=len)
    with pytest.raises(SystemExit, match="2"):
        main([*words, f"--{right[:-3] + right[-2:]}=1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"did you mean {right}?")
