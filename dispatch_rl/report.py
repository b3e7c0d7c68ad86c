"""What an evaluation says, in words and tables."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from dispatch_rl.comparison import ORACLE, Comparison, Evaluation
from dispatch_rl.contestants import BEST_FIXED, LEARNED, THRESHOLD
from dispatch_rl.text_table import text_table

Row = dict[str, Any]
HEADER = ["policy", "ms/token", "95 % interval", "speed-up", "gap closed", "accept length", "accept rate", "predicted", "decision"]
HEADER += ["SM", "memory", "mJ/token", "arms"]


def cells(row: Row) -> list[str]:
    """Return a row of the table in the order of :data:`HEADER`; what does not apply is blank."""
    shares = sorted(row["arm_shares"].items(), key=lambda item: -item[1])
    return [
        row["policy"],
        f"{row['latency_ms_per_token']:.3f}",
        f"{row['ci_low']:.3f} - {row['ci_high']:.3f}",
        f"{row['speedup']:.2f}",
        _or_blank(row["gap_closed"], "{:.0%}"),
        _or_blank(row["mean_acceptance_length"], "{:.2f}"),
        _or_blank(row["draft_acceptance_rate"], "{:.3f}"),
        _or_blank(row.get("prediction_error"), "{:+.1%}"),
        _or_blank(row["decision_overhead"], "{:.1%}"),
        _or_blank(row.get("sm_utilization"), "{:.0%}"),
        _or_blank(row.get("memory_utilization"), "{:.0%}"),
        _or_blank(row.get("energy_mj_per_token"), "{:.4g}"),
        " ".join(f"{arm} {share:.0%}" for arm, share in shares[:6] if share >= 0.005),
    ]


def _or_blank(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def used_columns(rows: Sequence[Row]) -> list[int]:
    """Return which columns of :data:`HEADER` say anything in these rows."""
    lines = [cells(row) for row in rows]
    return [i for i in range(len(HEADER)) if any(line[i] for line in lines)]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table, slowest policy first."""
    columns = used_columns(rows)
    return text_table([[line[i] for i in columns] for line in (HEADER, *(cells(row) for row in rows))])


def title(comparison: Comparison) -> str:
    """Return under which conditions a comparison was made."""
    how = "replayed exactly, latencies from the profile" if comparison.mode == "replay" else "decoded live, in random order, measured"
    return f"{comparison.num_texts} held-out texts, {int(comparison.tokens.sum())} tokens, {how}; {comparison.device}"


def verdict(comparison: Comparison, policy: str, baseline: str) -> str:
    """Return a sentence on the paired difference of ``policy`` and ``baseline``."""
    difference = comparison.difference_ms_per_token(policy, baseline)
    base = comparison.latency_ms_per_token(baseline).value
    low, high = 100 * difference.low / base, 100 * difference.high / base
    return (
        f"{policy} against {baseline}: {100 * difference.value / base:+.1f} % latency per token "
        f"(95 % interval {low:+.1f} to {high:+.1f} %, paired by text, {comparison.num_texts} texts)"
    )


def verdicts(comparison: Comparison) -> list[str]:
    """Return what there is to say about the learned policy, and about the predictions."""
    said = [
        verdict(comparison, LEARNED, name)
        for name in (THRESHOLD, BEST_FIXED)
        if LEARNED in comparison.results and name in comparison.results
    ]
    if LEARNED in comparison.results and (gap := comparison.gap_closed(LEARNED)) is not None:
        said.append(f"{LEARNED} closes {gap:.0%} of the way from the {BEST_FIXED} to the {ORACLE}, which foresees everything")
    if errors := [abs(error) for error in comparison.prediction_errors().values()]:
        drift = "" if comparison.drift is None else f"; corrected by {comparison.drift:+.1%} for the machine's speed since it was profiled"
        accuracy = f"median {median(errors):.1%}, largest {max(errors):.1%} off, {len(errors)} policies"
        said.append(f"predicted against measured latency: {accuracy}{drift}")
    return [*said, *comparison.remarks]


def summary(evaluation: Evaluation) -> str:
    """Return the tables and verdicts of all that was compared."""
    parts = []
    for comparison in (evaluation.replayed, evaluation.live):
        if comparison is not None:
            parts.append("\n".join([title(comparison), "", table(comparison.rows()), "", *verdicts(comparison)]))
    return "\n\n".join(parts)
