"""A sweep file: W&B's YAML, read and checked before anything is run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.sweeping import command
from dispatch_rl.sweeping.parameters import read_parameters
from dispatch_rl.sweeping.space import Parameter
from dispatch_rl.sweeping.stopping import Hyperband, read_stopping
from dispatch_rl.sweeping.suggestions import among, option

METHODS = ("grid", "random", "bayes")
_METRIC_KEYS = {"name", "goal", "target"}
_KEYS = {"program", "method", "metric", "parameters", "early_terminate", "command", "run_cap", "name", "description"}
_FOR_WANDB = {"entity", "project", "apiVersion", "kind", "controller"}
"""Keys that say where W&B keeps a sweep; nothing is done with them here."""
_NOT_HERE = {"metrics", "scheduler", "job", "image_uri"}
_OWN = {"name": "names its runs", "runs": "says where its runs are", "overwrite": "replaces no run"}
"""Options of ``train`` that the sweep sets, and why they are no parameters."""


@dataclass(frozen=True)
class Metric:
    """What is optimised.

    Args:
        name: As W&B knows it.
        goal: Which way.
        target: No run is started once one has come this far.
    """

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None

    @property
    def key(self) -> str:
        """The key in ``metrics.jsonl``, as :class:`dispatch_rl.tracking.lines.LinesTracker` writes it.

        ``validation/X`` is ``validation_X``; ``decoding/X`` and ``time/X`` are ``X``.
        """
        section, _, key = self.name.partition("/")
        return key if section in ("decoding", "time") else self.name.replace("/", "_")

    @property
    def sign(self) -> int:
        """What to multiply by so that less is better."""
        return 1 if self.goal == "minimize" else -1

    def reached(self, value: float) -> bool:
        """Return whether ``value`` is as good as the target."""
        return self.target is not None and self.sign * value <= self.sign * self.target


@dataclass(frozen=True)
class SweepFile:
    """A sweep as its file describes it, complete and checked."""

    path: Path
    name: str
    method: str
    metric: Metric
    parameters: tuple[Parameter, ...]
    stopping: Hyperband | None
    command: tuple[Any, ...]
    program: str
    run_cap: int | None
    content: dict[str, Any]

    def words(self, values: dict[Parameter, Any]) -> list[str]:
        """Return the command of the run with these values."""
        return command.expand(self.command, self.program, command.nested(values), f"{self.path}: command")

    @property
    def grid_size(self) -> int | None:
        """How many runs a grid has; None for other methods."""
        return math.prod(len(parameter.grid() or ()) for parameter in self.parameters) if self.method == "grid" else None


def read_sweep(path: Path) -> SweepFile:
    """Return the sweep that a file describes.

    Raises:
        UserError: In one line, with the file and the key.
    """
    content = _content(path)
    for key in content:
        if key in _NOT_HERE:
            raise UserError(f"{path}: {key}: only W&B's server can do this")
        if key not in _KEYS | _FOR_WANDB:
            raise UserError(f"{path}: {key}: there is no such key{among(key, _KEYS)}")
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"{path}: method: {method!r} is not offered{among(method, METHODS)}")
    run_cap = content.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or isinstance(run_cap, bool) or run_cap < 1):
        raise UserError(f"{path}: run_cap: {run_cap!r} is not an integer of at least 1")
    words = content.get("command", list(command.DEFAULT))
    if not isinstance(words, list) or not words:
        raise UserError(f"{path}: command: {words!r} is not a list of words")
    sweep = SweepFile(
        path=path,
        name=str(content.get("name", path.stem)),
        method=method,
        metric=_metric(content.get("metric"), path),
        parameters=tuple(_parameters(content.get("parameters"), method, path)),
        stopping=read_stopping(content["early_terminate"], f"{path}: early_terminate") if "early_terminate" in content else None,
        command=tuple(words),
        program=str(content.get("program", "")),
        run_cap=run_cap,
        content=content,
    )
    _check_options(sweep)
    return sweep


def _content(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise UserError(f"file: there is no file {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it is not a mapping with method, metric and parameters")
    return content


def _metric(given: Any, path: Path) -> Metric:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UserError(f"{path}: metric: it needs a name, as validation/latency_ms_per_token, and a goal")
    for key in given:
        if key in ("impute", "impute_while_running"):
            raise UserError(f"{path}: metric.{key}: only W&B's server can do this")
        if key not in _METRIC_KEYS:
            raise UserError(f"{path}: metric.{key}: there is no such key{among(key, _METRIC_KEYS)}")
    goal, target = given.get("goal", "minimize"), given.get("target")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"{path}: metric.goal: {goal!r} is not minimize or maximize")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise UserError(f"{path}: metric.target: {target!r} is not a number")
    return Metric(given["name"], goal, target)


def _parameters(given: Any, method: str, path: Path) -> Iterator[Parameter]:
    """Yield the parameters; in a grid, all of them with their values."""
    for parameter in read_parameters(given, f"{path}: parameters"):
        values = parameter.grid()
        if method != "grid" or parameter.is_constant:
            yield parameter
        elif values is None:
            place = f"{path}: parameters.{'.parameters.'.join(parameter.path)}"
            raise UserError(f"{place}: a grid needs value, values, int_uniform or q_uniform, not {parameter.kind}")
        else:
            yield Parameter(parameter.path, "categorical", {"values": values})


def _check_options(sweep: SweepFile) -> None:
    """Refuse options that ``train`` does not have, and values that it would not take."""
    parser = cli.make_parser(TrainConfig, "train", "")
    parser.exit_on_error = False
    known = {name.removeprefix("--") for action in parser._actions for name in action.option_strings}
    for parameter in sweep.parameters:
        if parameter.name in _OWN:
            raise UserError(f"{_place(sweep, parameter)}: a sweep {_OWN[parameter.name]} itself")
        if parameter.name not in known or parameter.name == "config":
            raise UserError(f"{_place(sweep, parameter)}: {command.TRAIN} has no such option{option(parameter.name, known)}")
    _, options = command.parts(sweep.words({}))
    try:
        cli.parse(parser, options)
    except UserError as error:
        raise UserError(f"{sweep.path}: command: {error}") from error
    for parameter in sweep.parameters:
        for value in parameter.samples():
            try:
                cli.parse(parser, command.arguments(command.nested({parameter: value}))["args"])
            except UserError as error:
                raise UserError(f"{_place(sweep, parameter)}: {value!r} is not what the option takes: {error}") from error


def _place(sweep: SweepFile, parameter: Parameter) -> str:
    return f"{sweep.path}: parameters.{'.parameters.'.join(parameter.path)}"
