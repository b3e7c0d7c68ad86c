"""What came out of a sweep: rows, a table and a figure."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial

from dispatch_rl.sweeping.space import Parameter
from dispatch_rl.sweeping.study import ENDED, SweepStudy, command_of, history, run_name
from dispatch_rl.text_table import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
UNFINISHED = "unfinished"
_PATCH = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}


def rows(study: SweepStudy, folder: Path, track: str | None) -> list[Row]:
    """Return an object for every run, the best first, those that say nothing last."""
    made = [_row(study, trial, folder, track) for trial in study.trials()]
    sign = study.sweep.metric.sign
    return sorted(made, key=lambda row: (row["value"] is None, sign * (row["value"] or 0), row["run"]))


def _row(study: SweepStudy, trial: FrozenTrial, folder: Path, track: str | None) -> Row:
    values, seen = study.values(trial), history(trial)
    name = run_name(trial.number)
    return {
        "run": str(folder / name),
        "state": ENDED.get(trial.state, UNFINISHED),
        "metric": study.sweep.metric.name,
        "value": study.best(seen) if seen else None,
        "validations": len(seen),
        "parameters": {parameter.name: value for parameter, value in values.items()},
        "command": shlex.join(command_of(study.sweep, trial.number, values, folder, track)),
        "log": str(folder / f"{name}.log"),
    }


def table(found: Sequence[Row], parameters: Sequence[Parameter]) -> str:
    """Return the rows as an aligned table."""
    searched = [parameter.name for parameter in parameters if not parameter.is_constant]
    lines = [["run", found[0]["metric"], "validations", "", *searched]]
    for row in found:
        value = "" if row["value"] is None else f"{row['value']:.5g}"
        chosen = [_cell(row["parameters"][name]) for name in searched]
        lines.append([Path(row["run"]).name, value, str(row["validations"]), row["state"], *chosen])
    return text_table(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parallel_coordinates(axes: "Axes", found: Sequence[Row], parameters: Sequence[Parameter]) -> None:
    """Draw a line for every run that has a value, through its parameters to the metric: dashed where it was stopped early."""
    from matplotlib import colormaps

    drawn = [row for row in found if row["value"] is not None]
    searched = [parameter for parameter in parameters if not parameter.is_constant]
    scales = [_scale(p, [row["parameters"][p.name] for row in drawn]) for p in searched]
    results = np.array([row["value"] for row in drawn])
    scales.append((_between(results, results.min(), results.max()), [(0.0, f"{results.min():.4g}"), (1.0, f"{results.max():.4g}")]))
    heights = np.array([places for places, _ in scales])
    rank = np.argsort(np.argsort([-found.index(row) for row in drawn])) / max(len(drawn) - 1, 1)
    for index in range(len(drawn) - 1, -1, -1):  # the best on top
        line = "--" if drawn[index]["state"] != "finished" else "-"
        axes.plot(heights[:, index], line, color=colormaps["viridis"](rank[index]), linewidth=2.5 if index == 0 else 1.3)
    for place, (_, labels) in enumerate(scales):
        axes.axvline(place, color="#999999", linewidth=0.8)
        for height, label in labels:
            axes.annotate(label, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center", bbox=_PATCH)
    axes.set_xticks(range(len(scales)), [*(p.name for p in searched), drawn[0]["metric"]], fontsize=8)
    axes.set_yticks([])
    axes.set(title=f"{len(drawn)} runs; thick: the best; dashed: stopped early", ylim=(-0.06, 1.06), xlim=(-0.2, len(scales) - 0.6))


def _scale(parameter: Parameter, values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Return where values stand on an axis from 0 to 1, and its labels."""
    if parameter.kind == "categorical":
        names = [str(value) for value in parameter.settings["values"]]
        places = np.linspace(0, 1, len(names)) if len(names) > 1 else np.array([0.5])
        return np.array([places[names.index(str(value))] for value in values]), list(zip(places.tolist(), names, strict=True))
    numbers = np.array(values, dtype=float)
    low, high = numbers.min(), numbers.max()
    made = np.log(numbers) if parameter.is_logarithmic and low > 0 else numbers
    return _between(made, made.min(), made.max()), [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def write_figure(path: Path, found: Sequence[Row], parameters: Sequence[Parameter]) -> None:
    """Write the parallel coordinates as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    searched = sum(not parameter.is_constant for parameter in parameters)
    figure = Figure(figsize=(3 + 2 * searched, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    parallel_coordinates(figure.add_subplot(), found, parameters)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)
