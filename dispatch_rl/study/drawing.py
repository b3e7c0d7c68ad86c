"""The figure of a study."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dispatch_rl.page import Draw, write_picture
from dispatch_rl.replay.regret import MISSED
from dispatch_rl.study.plan import Row
from dispatch_rl.study.tables import bucket

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"replay": "#56b4e9", "live": "#e69f00"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw what the rows tell: latency at each temperature, groups of features, and lost time."""
    draws: list[Draw] = []
    for table in ("policies", "students"):
        for temperature in dict.fromkeys(row["temperature"] for row in rows if row["table"] == table):
            here = [row for row in rows if row["table"] == table and row["temperature"] == temperature]
            draws.append(lambda axes, h=here: _latency(axes, h))  # type: ignore[misc]
    if features := [row for row in rows if row["table"] == "features" and row["without"] != "nothing"]:
        draws.append(lambda axes: _features(axes, features))
    for temperature in dict.fromkeys(row["temperature"] for row in rows if row["table"] == "regret"):
        lost = [row for row in rows if row["table"] == "regret" and row["temperature"] == temperature]
        draws.append(lambda axes, r=lost: _regret(axes, r))  # type: ignore[misc]
    if draws:
        write_picture(draws, path)


def _latency(axes: "Axes", rows: Sequence[Row]) -> None:
    """Draw replay and live latencies of every policy and bound with their intervals, the slowest at the top."""
    names = list(dict.fromkeys(row["policy"] for row in rows if row["mode"] == "replay"))[::-1]
    for shift, (mode, colour) in zip((0.2, -0.2), _COLOURS.items(), strict=True):
        mine = [row for row in rows if row["mode"] == mode and row["policy"] in names]
        values = np.array([row["latency_ms_per_token"] for row in mine])
        low, high = (np.array([row[key] for row in mine]) for key in ("ci_low", "ci_high"))
        places = [names.index(row["policy"]) + shift for row in mine]
        if mine:
            errors = np.maximum(np.stack([values - low, high - values]), 0)
            axes.barh(places, values, height=0.38, xerr=errors, color=colour, capsize=2, label=mode)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.legend(fontsize=8, loc="lower right")
    title = f"{rows[0]['table'].capitalize()}, temperature {rows[0]['temperature']:g}"
    axes.set(xlabel="latency (ms per token), 95 % interval", title=title)


def _features(axes: "Axes", rows: Sequence[Row]) -> None:
    """Draw how much slower the learner is without each group of features."""
    values, low, high = (100 * np.array([row[key] - 1 for row in rows]) for key in ("ratio", "ratio_low", "ratio_high"))
    errors = np.maximum(np.stack([values - low, high - values]), 0)
    axes.errorbar(values, [row["without"] for row in rows], xerr=errors, fmt="o", color=_COLOURS["replay"], capsize=3)
    axes.axvline(0, color="#999999", linestyle="--")
    axes.margins(y=0.2)
    axes.set(xlabel="more latency per token (%), 95 % interval, paired by text", title="Without a group of features")


def _regret(axes: "Axes", rows: Sequence[Row]) -> None:
    """Draw the lost time by entropy before the round, stacked by what was missed."""
    buckets = [bucket(low, high) for low, high in dict.fromkeys((row["entropy_low"], row["entropy_high"]) for row in rows)]
    below = np.zeros(len(buckets))
    for missed in MISSED:
        lost = np.array([row["lost_ms_per_token"] for row in rows if row["missed"] == missed])
        axes.bar(buckets, lost, bottom=below, label=missed)
        below += lost
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=8)
    title = f"Lost against the oracle, temperature {rows[0]['temperature']:g}"
    axes.set(xlabel="entropy before the round (nats)", ylabel="ms per token", title=title)
