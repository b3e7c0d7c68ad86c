"""Tables and figures of an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dispatch_rl.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

_ENTROPY_BINS = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 12.0])


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table, slowest policy first."""
    header = ["policy", "ms/token", "95 % interval", "speed-up", "accept length", "accept rate", "decision", "arms"]
    cells = [header]
    for row in rows:
        rate = row["draft_acceptance_rate"]
        shares = sorted(row["arm_shares"].items(), key=lambda item: -item[1])
        cells.append(
            [
                row["policy"],
                f"{row['latency_ms_per_token']:.3f}",
                f"{row['ci_low']:.3f} - {row['ci_high']:.3f}",
                f"{row['speedup']:.2f}",
                f"{row['mean_acceptance_length']:.2f}",
                "" if rate is None else f"{rate:.3f}",
                f"{row['decision_overhead']:.1%}",
                " ".join(f"{arm} {share:.0%}" for arm, share in shares if share >= 0.005),
            ]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def verdict(comparison: Comparison, policy: str, baseline: str) -> str:
    """Return a sentence on the paired difference of ``policy`` and ``baseline``."""
    difference = comparison.difference_ms_per_token(policy, baseline)
    base = comparison.latency_ms_per_token(baseline).value
    low, high = 100 * difference.low / base, 100 * difference.high / base
    return (
        f"{policy} against {baseline}: {100 * difference.value / base:+.1f} % latency per token "
        f"(95 % interval {low:+.1f} to {high:+.1f} %, paired by prompt, {len(comparison.prompts)} prompts)"
    )


def draw(comparison: Comparison, path: Path, shown: str) -> None:
    """Draw latency, acceptance, and the arms of policy ``shown`` against entropy."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = comparison.rows()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    _draw_latency(axes[0], rows)
    _draw_acceptance(axes[1], rows)
    _draw_arms(axes[2], comparison, shown)
    figure.suptitle(f"{len(comparison.prompts)} held-out prompts, {comparison.device}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_latency(axes: "Axes", rows: Sequence[Row]) -> None:
    names = [row["policy"] for row in rows]
    values = np.array([row["latency_ms_per_token"] for row in rows])
    errors = np.array([[row["latency_ms_per_token"] - row["ci_low"], row["ci_high"] - row["latency_ms_per_token"]] for row in rows])
    axes.barh(names, values, xerr=errors.T, color="#56b4e9", capsize=3)
    axes.invert_yaxis()
    axes.set(xlabel="latency (ms per token), 95 % interval", title="Latency")


def _draw_acceptance(axes: "Axes", rows: Sequence[Row]) -> None:
    drafting = [row for row in rows if row["draft_acceptance_rate"] is not None]
    for row in drafting:
        point = (row["draft_acceptance_rate"], row["mean_acceptance_length"])
        axes.scatter(*point, color="#009e73")
        axes.annotate(row["policy"], point, textcoords="offset points", xytext=(5, 3), fontsize=8)
    axes.set(xlabel="draft acceptance rate", ylabel="mean acceptance length (tokens)", title="Acceptance", xlim=(0, 1.15))


def _draw_arms(axes: "Axes", comparison: Comparison, shown: str) -> None:
    """Stack the shares of the arms in each bin of the entropy that the policy saw."""
    texts = comparison.texts[shown]
    entropies = np.array([entropy for text in texts for entropy in text.entropies_at_decision])
    arms = np.array([record.arm for text in texts for record in text.rounds])
    bins = np.digitize(entropies, _ENTROPY_BINS[1:-1])
    places = np.arange(len(_ENTROPY_BINS) - 1)
    counts = np.array([(bins == place).sum() for place in places])
    bottom = np.zeros(len(places))
    for arm in sorted(set(arms)):
        share = np.array([((bins == place) & (arms == arm)).sum() for place in places]) / np.maximum(counts, 1)
        axes.bar(places, share, bottom=bottom, label=arm, width=0.9)
        bottom += share
    labels = [f"{low:g}-{high:g}\n{count}" for low, high, count in zip(_ENTROPY_BINS, _ENTROPY_BINS[1:], counts, strict=False)]
    axes.set_xticks(places, labels, fontsize=7)
    axes.set(xlabel="entropy before the round (nats), rounds", ylabel="share of rounds", title=f"Arms of '{shown}'", ylim=(0, 1))
    axes.legend(fontsize=8)
