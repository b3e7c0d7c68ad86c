"""Figures of an evaluation, each drawn on axes that the caller provides."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dispatch_rl.comparison import ORACLE, TARGET_ALONE, Comparison
from dispatch_rl.contestants import LEARNED
from dispatch_rl.decoding.features import ENTROPY_BUCKETS_NATS
from dispatch_rl.replay.world import ReplayWorld

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _GREEN, _ORANGE, _RED, _GREY = "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#999999"
_DRAFT_PLACES = 16
_TEXT_BINS = 16
_TIMELINE_ROUNDS = 40
"""More could not be read."""


def latency(axes: "Axes", comparison: Comparison, learned: Collection[str] = (LEARNED,)) -> None:
    """Draw the latency of every policy with its interval, the ``learned`` ones in another colour, and the oracle as a line."""
    rows = [row for row in comparison.rows() if row["policy"] not in comparison.bounds]
    values = np.array([row["latency_ms_per_token"] for row in rows])
    errors = np.array([[row["latency_ms_per_token"] - row["ci_low"], row["ci_high"] - row["latency_ms_per_token"]] for row in rows])
    colours = [_GREEN if row["policy"] in learned else _BLUE for row in rows]
    axes.barh([row["policy"] for row in rows], values, xerr=errors.T, color=colours, capsize=3)
    axes.invert_yaxis()
    if ORACLE in comparison.bounds:
        bound = comparison.latency_ms_per_token(ORACLE).value
        axes.axvline(bound, color=_RED, linestyle="--", label=f"{ORACLE} {bound:.2f}")
        axes.legend(loc="lower right", fontsize=8)
    axes.set(xlabel="latency (ms per token), 95 % interval", title=f"Latency ({comparison.mode})")


def differences(axes: "Axes", comparison: Comparison, policies: Sequence[str], baseline: str) -> None:
    """Draw how much more every policy takes than the baseline, with the interval of the paired difference."""
    base = comparison.latency_ms_per_token(baseline).value
    intervals = [comparison.difference_ms_per_token(policy, baseline) for policy in policies]
    values, low, high = (100 / base * np.array([getattr(interval, end) for interval in intervals]) for end in ("value", "low", "high"))
    axes.errorbar(values, list(policies), xerr=np.stack([values - low, high - values]), fmt="o", color=_BLUE, capsize=3)
    axes.axvline(0, color=_GREY, linestyle="--")
    axes.margins(y=0.3)
    axes.set(xlabel="difference in latency per token (%), 95 % interval, paired by text", title=f"Against '{baseline}' ({comparison.mode})")


def gap_closed(axes: "Axes", comparison: Comparison) -> None:
    """Draw which share of the way from the best fixed arm to the oracle every policy goes."""
    shares = {name: comparison.gap_closed(name) for name in comparison.results if name != TARGET_ALONE}
    known = sorted((share, name) for name, share in shares.items() if share is not None)
    axes.barh([name for _, name in known], [max(share, -1.5) for share, _ in known], color=[_GREEN if s > 0 else _GREY for s, _ in known])
    for place, (share, _) in enumerate(known):
        axes.annotate(f"{share:.0%}", (max(share, -1.5), place), fontsize=7, va="center")
    axes.axvline(1, color=_RED, linestyle="--")
    axes.set(xlabel="share of the gap between best fixed arm (0) and oracle (1)", title="Gap closed", xlim=(-1.5, 1.05))


def arms_by_entropy(axes: "Axes", comparison: Comparison, policy: str) -> None:
    """Draw how often a policy chose each arm in every bucket of the entropy that it saw."""
    rounds = comparison.results[policy].rounds
    arms = sorted(set(rounds.arm.tolist()))
    buckets = np.digitize(rounds.entropy_nats, ENTROPY_BUCKETS_NATS[1:-1])
    counts = np.array([[((rounds.arm == arm) & (buckets == b)).sum() for b in range(len(ENTROPY_BUCKETS_NATS) - 1)] for arm in arms])
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.01:
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=7, color="white" if share < 0.6 else "black")
    labels = [
        f"{low:g}-{high:g}\n{count}"
        for low, high, count in zip(ENTROPY_BUCKETS_NATS, ENTROPY_BUCKETS_NATS[1:], counts.sum(axis=0), strict=False)
    ]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set(xlabel="entropy before the round (nats), rounds", title=f"Arms of '{policy}' ({comparison.mode})")


def acceptance_by_draft_place(axes: "Axes", world: ReplayWorld) -> None:
    """Draw how often the first, second, ... token of a draft that begins anywhere stands."""
    places = np.arange(1, min(_DRAFT_PLACES, world.traces.max_draft_length) + 1)
    for name, accepted in world.traces.accepted.items():
        axes.plot(places, [(accepted >= place).mean() for place in places], marker=".", label=name)
    if world.traces.lookup:
        axes.plot(places, [(world.traces.lookup["lookup_accepted"] >= place).mean() for place in places], marker=".", label="lookup")
    axes.legend(fontsize=8)
    axes.set(xlabel="place in the draft", ylabel="share of drafts accepted so far", title="Acceptance by draft position", ylim=(0, 1))


def acceptance_by_text_place(axes: "Axes", world: ReplayWorld) -> None:
    """Draw how many tokens match along the text."""
    traces = world.traces
    place = np.arange(traces.num_positions) - np.repeat(traces.offsets[:-1], traces.lengths)
    edges = np.linspace(0, max(int(place.max()) + 1, 2), _TEXT_BINS + 1)
    bins = np.digitize(place, edges) - 1
    counts = np.maximum(np.bincount(bins, minlength=_TEXT_BINS), 1)
    for name, accepted in traces.accepted.items():
        axes.plot(edges[:-1], np.bincount(bins, accepted > 0, minlength=_TEXT_BINS) / counts, marker=".", label=name)
    axes.legend(fontsize=8)
    axes.set(xlabel="token of the text", ylabel="share of tokens that match", title="Acceptance by text position", ylim=(0, 1.02))


def timeline(axes: "Axes", comparison: Comparison, policies: Sequence[str], text: int) -> None:
    """Draw the first rounds of one text over time: a bar per round, as long as it took, coloured by arm, with its tokens."""
    tables = [comparison.results[name].rounds for name in policies]
    shown = [np.flatnonzero(rounds.text == text)[:_TIMELINE_ROUNDS] for rounds in tables]
    arms = sorted({arm for rounds, mine in zip(tables, shown, strict=True) for arm in rounds.arm[mine].tolist()})
    palette = dict(zip(arms, [_BLUE, _GREEN, _ORANGE, _RED, "#cc79a7", "#0072b2", "#f0e442", _GREY] * 9, strict=False))
    for row, (rounds, mine) in enumerate(zip(tables, shown, strict=True)):
        widths = rounds.latency_ms[mine]
        ends = np.cumsum(widths)
        axes.barh([row] * len(ends), widths, left=ends - widths, color=[palette[a] for a in rounds.arm[mine]], edgecolor="white")
        for end, width, emitted in zip(ends, widths, rounds.emitted[mine], strict=True):
            axes.text(end - width / 2, row, str(emitted), ha="center", va="center", fontsize=6)
    for arm in arms:
        axes.bar(0, 0, color=palette[arm], label=arm)
    axes.set_yticks(range(len(policies)), policies, fontsize=8)
    axes.set_ylim(len(policies) + 0.1, -0.5)  # room for the legend below the last row
    axes.legend(fontsize=7, ncols=4, loc="lower right")
    cut = f", first {_TIMELINE_ROUNDS} rounds" if max(map(len, shown)) == _TIMELINE_ROUNDS else ""
    axes.set(xlabel="time (ms); numbers: tokens emitted", title=f"One text ({comparison.mode}, number {text}{cut})")


def prediction(axes: "Axes", comparison: Comparison) -> None:
    """Draw for every policy the measured latency with a band of 5 % around it, and what replay predicted."""
    rows = [row for row in comparison.rows() if "prediction_error" in row]
    measured = np.array([row["latency_ms_per_token"] for row in rows])
    names = [row["policy"] for row in rows]
    axes.barh(names, 0.1 * measured, left=0.95 * measured, color=_GREY, alpha=0.35, label="measured, and 5 % to either side")
    axes.scatter(measured, names, color=_GREY, marker="|", s=90)
    axes.scatter([row["predicted_latency_ms_per_token"] for row in rows], names, color=_RED, s=22, zorder=3, label="predicted by replay")
    axes.invert_yaxis()
    axes.legend(fontsize=8, loc="lower right")
    axes.set(xlabel="latency (ms per token)", title="Predicted and measured", xlim=(0.92 * measured.min(), 1.08 * measured.max()))
