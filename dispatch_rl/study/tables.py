"""The tables of a study, in Markdown."""

from collections.abc import Sequence

from dispatch_rl.replay.regret import MISSED
from dispatch_rl.study.plan import EVERYTHING, Row

_ARMS_SHOWN = 4
_REGRET = """\
Along its own way through the texts, the learner's every round is compared with the oracle's choice from there; the losses add up to exactly
the excess over the oracle, who foresees everything, noise included. Prompt lookup counts as a student. Who drafts where the oracle leaves
it to the target has drafted too long."""

_BOUND = """\
Informed: a network of 256 x 128 that also sees the target's last hidden state and the embedding of the last token, taught like the learner,
on ever more texts. The bound is the best of all of them, and the learner, on the validation texts; the ways begin at the best fixed arm."""
_ADAPTATION = """\
The learned policy adapts while it decodes: fixed arms, chosen on validation texts of the sort that it was trained on, are tried, and stand
in for it while they are faster. It begins without experience and decodes the test texts one after the other; times are means over {orders}
random orders, the worst of which is told too. The best fixed arm is that of the sort of text that is decoded, chosen on its validation
texts; in hindsight, it is chosen on the very texts. The costs of finding out are in all figures."""


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return an aligned table without the columns that are blank."""
    kept = [i for i in range(len(header)) if any(line[i] for line in lines)]
    cells = [[line[i] for i in kept] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(kept))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]])


def policies(rows: Sequence[Row]) -> str:
    """Return everybody at one temperature: a line per policy or bound, replay and live side by side, the slowest first."""
    by_mode = {mode: {row["policy"]: row for row in rows if row["mode"] == mode} for mode in ("replay", "live")}
    header = ["policy", "replay, ms/token", "95 %", "seeds", "gap closed", "speed-up", "accept length", "accept rate"]
    header += ["live, ms/token", "live 95 %", "live speed-up", "predicted", "decision", "arms"]
    lines = []
    for name, row in by_mode["replay"].items():
        live = by_mode["live"].get(name)
        lines.append([name, *_latency(row), _seeds(row), *_outcome(row), *(_live(live) if live else [""] * 5), _arms(row)])
    return markdown(header, lines)


def ratios(rows: Sequence[Row]) -> str:
    """Return the ratios of learners to their rivals, replay and live side by side, on all texts and on those of each kind."""
    pairs = dict.fromkeys((row["policy"], row["baseline"]) for row in rows)
    columns = [(kind, mode) for kind in dict.fromkeys(row["kind"] for row in rows) for mode in ("replay", "live")]
    found = {(row["policy"], row["baseline"], row["kind"], row["mode"]): row for row in rows}
    lines = [[f"{a} / {b}", *(_ratio(found.get((a, b, *column))) for column in columns)] for a, b in pairs]
    titles = [f"{mode} (95 %)" if kind is None else f"{kind}, {mode}" for kind, mode in columns]
    return markdown(["latency ratio", *titles], lines)


def features(rows: Sequence[Row]) -> str:
    """Return what the learner takes without each group of features."""
    header = ["without", "features", "ms/token", "95 %", "seeds", "latency ratio (95 %)", "gap closed"]
    lines = [[row["without"], _names(row), *_latency(row), _seeds(row), _ratio(row), _percent(row["gap_closed"])] for row in rows]
    return f"{_about(rows)}\n\n{markdown(header, lines)}"


def arms(rows: Sequence[Row]) -> str:
    """Return what the learner, the best fixed arm and the oracle make of each set of arms."""
    header = ["arms", "number", "learner, ms/token", "95 %", "seeds", "latency ratio (95 %)", "best fixed arm", "oracle", "gap closed"]
    lines = [
        [row["arms"], str(row["num_arms"]), *_latency(row), _seeds(row), _ratio(row), *_ends(row), _percent(row["gap_closed"])]
        for row in rows
    ]
    return f"{_about(rows)}\n\n{markdown(header, lines)}"


def transfer(rows: Sequence[Row]) -> str:
    """Return one table per thing that differs between training and test."""
    header = ["tested on", "trained on", "ms/token", "95 %", "seeds", "to trained there (95 %)", "to best fixed arm (95 %)"]
    header += ["best fixed arm", "fixed arm chosen where trained", "oracle"]
    parts = []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        lines = []
        for row in rows:
            if row["axis"] == axis:
                fixed, oracle = _ends(row)
                about = [row["tested_on"], row["trained_on"], *_latency(row), _seeds(row), _ratio(row), _ratio(row["ratio_to_best_fixed"])]
                lines.append([*about, fixed, f"{row['best_fixed_moved_ms_per_token']:.3f}", oracle])
        parts.append(f"By {axis} ({_about([row for row in rows if row['axis'] == axis])}):\n\n{markdown(header, lines)}")
    return "\n\n".join(parts)


def adaptation(rows: Sequence[Row]) -> str:
    """Return one table per thing that differs between training and test, and one of the texts whose sort changes."""
    header = ["decoded", "trained on", "part", "texts", "ms/token", "to best fixed arm (95 %)", "worst order", "to best in hindsight"]
    header += ["as trained, to best fixed arm", "to as trained (95 %)"]
    parts = [_ADAPTATION.format(orders=rows[0]["num_orders"])]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        here = [row for row in rows if row["axis"] == axis]
        lines = [
            [
                *(row["tested_on"], row["trained_on"], row["part"], str(row["num_texts"])),
                *(f"{row['latency_ms_per_token']:.3f}", _ratio(row["ratio_to_best_fixed"])),
                *(f"{row[key]:.3f}" for key in ("worst_order", "ratio_to_hindsight", "learned_to_best_fixed")),
                _ratio(row),
            ]
            for row in here
        ]
        parts.append(f"By {axis} ({here[0]['policy']}, replay):\n\n{markdown(header, lines)}")
    return "\n\n".join(parts)


def regret(rows: Sequence[Row]) -> str:
    """Return, for every temperature, the shares of the lost time by entropy and by what was missed."""
    parts = []
    for temperature in dict.fromkeys(row["temperature"] for row in rows):
        here = [row for row in rows if row["temperature"] == temperature]
        total = sum(row["lost_ms_per_token"] for row in here)
        buckets = dict.fromkeys((row["entropy_low"], row["entropy_high"]) for row in here)
        lines = []
        for low, high in buckets:
            mine = {row["missed"]: row for row in here if row["entropy_low"] == low}
            shares = [mine[missed]["lost_share"] for missed in MISSED]
            rounds = next(iter(mine.values()))["round_share"]
            lines.append([bucket(low, high), f"{rounds:.1%}", *(f"{share:.1%}" for share in (*shares, sum(shares)))])
        totals = [sum(row["lost_share"] for row in here if row["missed"] == missed) for missed in MISSED]
        lines.append(["all", "100.0%", *(f"{share:.1%}" for share in (*totals, sum(totals)))])
        table = markdown(["entropy before the round (nats)", "rounds", *MISSED, "lost time"], lines)
        parts.append(f"Temperature {temperature:g}: {here[0]['policy']} loses {total:.3f} ms per token to the oracle.\n\n{table}")
    return "\n\n".join([_REGRET, *parts])


def bound(rows: Sequence[Row]) -> str:
    """Return what the learner and the informed policies take, and how far along each is."""
    header = [
        "temperature",
        "policy",
        "training texts",
        "ms/token",
        "95 %",
        "to best fixed arm (95 %)",
        "of the way to the bound",
        "to the oracle",
    ]
    lines = []
    for row in rows:
        gone = [_percent(row[key]) for key in ("bound_gap_closed", "gap_closed")]
        about = [f"{row['temperature']:g}", row["policy"], str(row["training_texts"])]
        lines.append([*about, *_latency(row), _ratio(row), *gone])
    return f"{_BOUND}\n\n{markdown(header, lines)}"


def bucket(low: float | None, high: float | None) -> str:
    """Return what a range of entropies is called; None means that they were not recorded."""
    return "unknown" if low is None else f"{low:g}-{high:g}"


def _names(row: Row) -> str:
    return f"all {len(row['features'])}" if row["without"] == EVERYTHING else " ".join(row["features"])


def _about(rows: Sequence[Row]) -> str:
    first = rows[0]
    temperature = f"temperature {first['temperature']:g}, " if "temperature" in first else ""
    return f"{first['policy']}, {temperature}replay, {first['num_texts']} texts"


def _latency(row: Row) -> list[str]:
    return [f"{row['latency_ms_per_token']:.3f}", f"{row['ci_low']:.3f}-{row['ci_high']:.3f}"]


def _seeds(row: Row) -> str:
    if row.get("num_seeds", 1) < 2:
        return ""
    return f"{row['num_seeds']}: ±{row['seed_deviation']:.3f} ({row['seed_lowest']:.3f}-{row['seed_highest']:.3f})"


def _outcome(row: Row) -> list[str]:
    length, rate = row["mean_acceptance_length"], row["draft_acceptance_rate"]
    found = [_percent(row["gap_closed"]), f"{row['speedup']:.2f}"]
    return [*found, "" if length is None else f"{length:.2f}", "" if rate is None else f"{rate:.3f}"]


def _live(row: Row) -> list[str]:
    error, decision = row.get("prediction_error"), row["decision_overhead"]
    found = [*_latency(row), f"{row['speedup']:.2f}", "" if error is None else f"{error:+.1%}"]
    return [*found, "" if decision is None else f"{decision:.2%}"]


def _arms(row: Row) -> str:
    shares = sorted(row["arm_shares"].items(), key=lambda item: -item[1])[:_ARMS_SHOWN]
    return " ".join(f"{arm} {share:.0%}" for arm, share in shares if share >= 0.005)


def _ratio(row: Row | None) -> str:
    return "" if row is None else f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"


def _ends(row: Row) -> list[str]:
    return [f"{row[key]:.3f}" for key in ("best_fixed_ms_per_token", "oracle_ms_per_token")]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
