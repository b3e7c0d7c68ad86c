"""Latencies of a family of the right shapes with random weights, each beside its floor. What is accepted of drafts means nothing here."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from dispatch_rl.bandwidth import copy_bandwidth, floors_ms, weight_bytes_read
from dispatch_rl.config import DecodingConfig, FamilyConfig, ProfilingConfig
from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import warm_up
from dispatch_rl.decoding.random_weights import random_family
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.progress import progress_bar
from dispatch_rl.replay.measuring import measure
from dispatch_rl.replay.profile import TARGET, ForwardLatency, Profile
from dispatch_rl.text_table import text_table
from dispatch_rl.utilisation import describe, watch_gpu

Row = dict[str, Any]
FIRST, FURTHER, VERIFICATION, BESIDES = "first draft token", "further draft token", "verification", "a round besides"


def bench_random_weights(
    config: FamilyConfig,
    students: Collection[str] | None,
    draft_length: int,
    settings: ProfilingConfig,
    seed: int,
) -> list[Row]:
    """Build a family with random weights, decode with it as deployed, and return a row for every part of a round.

    Args:
        config: The models.
        students: Which students are built; None means all.
        draft_length: Half of the drafts are so long.
        settings: How much is measured.
        seed: Of the weights.

    Raises:
        UserError: A configuration is not to be had, or memory does not do.
    """
    with _memory_told("building the models"):
        family = random_family(config, students, seed)
    print(f"{family.describe()}\nweights are random: how much is accepted means nothing and is not told")
    with _memory_told("measuring"):
        bandwidth = copy_bandwidth(family.device)
        print(f"copy bandwidth: {bandwidth / 1e9:.4g} GB/s")
        began = perf_counter()
        warm_up(family, ArmTable([Arm(NONE), *(Arm(name, draft_length) for name in family.students)]))
        family.synchronise()
        print(f"warm-up: {perf_counter() - began:.1f} s")
        with progress_bar("measuring latencies", settings.rounds) as update, watch_gpu(family.device) as watch:
            profile = measure(family, DecodingConfig(family=config, draft_length=draft_length), settings, update)
    rows = rows_of(family, profile, bandwidth, seed)
    if (usage := watch.usage()) is not None:
        print(f"GPU, all the while: {describe(usage.row())}")
        rows[-1] |= usage.row()
    return rows


@contextmanager
def _memory_told(what: str) -> Iterator[None]:
    """Tell in one line of a device that runs out of memory.

    Raises:
        UserError: It did.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(f"family: the device ran out of memory while {what}: {first_line(error)}; take fewer by --students") from error


def rows_of(family: Family, profile: Profile, bandwidth: float, seed: int) -> list[Row]:
    """Return a row for every part of a round, query length and context."""
    floors, shared = floors_ms(family, bandwidth), {"copy_gb_per_s": bandwidth / 1e9, "device": profile.device, "seed": seed}
    rows: list[Row] = []
    for name, model in {TARGET: family.target, **family.students}.items():
        size = weight_bytes_read(model.model)
        dtype = str(next(model.model.parameters()).dtype).removeprefix("torch.")
        for row in _parts(name, profile.models[name]):
            known = {"floor_ms": floors[name], "over_floor": row["median_ms"] / floors[name]}
            rows.append({"model": name, **row, **known, "gb_per_s": size / row["median_ms"] / 1e6, "weight_bytes": size, "dtype": dtype})
    rows.append({"model": None, "part": BESIDES, "median_ms": profile.overhead_ms + profile.token_ms})
    return [row | shared for row in rows]


def _parts(name: str, latency: ForwardLatency) -> Iterator[Row]:
    low, high = latency.quartile_low_ms, latency.quartile_high_ms
    assert low is not None
    assert high is not None
    for i, query in enumerate(latency.queries):
        for j, context in enumerate(latency.contexts):
            part = {"part": VERIFICATION, "draft_length": query - 1} if name == TARGET else {"part": FIRST, "catch_up": query}
            quartiles = {"quartile_low_ms": low[i][j], "quartile_high_ms": high[i][j]}
            yield {**part, "context": context, "median_ms": latency.median_ms[i][j], **quartiles}
    for context, median_ms in zip(latency.contexts, latency.next_ms or (), strict=latency.next_ms is not None):
        if name != TARGET:
            yield {"part": FURTHER, "context": context, "median_ms": median_ms}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table: a line for every part, a column for every context."""
    contexts = sorted({row["context"] for row in rows if "context" in row})
    lines: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        if "context" in row:
            lines.setdefault((row["model"], _part_name(row)), {})[row["context"]] = row
    heads = ["model", "part", *(f"ms, text of {context}" for context in contexts), "floor ms", "over the floor"]
    cells = [heads, *([*key, *(_cell(found.get(c)) for c in contexts), *_floor(list(found.values()))] for key, found in lines.items())]
    besides = next(row["median_ms"] for row in rows if row["part"] == BESIDES)
    return f"{text_table(cells)}\n{BESIDES}: {besides:.3f} ms (features, bookkeeping, noise)"


def _part_name(row: Row) -> str:
    if row["part"] == VERIFICATION:
        return f"verify a draft of {row['draft_length']}"
    return f"first token, {row['catch_up']} behind" if row["part"] == FIRST else "each further token"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    spread = f" ({row['quartile_low_ms']:.3f}-{row['quartile_high_ms']:.3f})" if "quartile_low_ms" in row else ""
    return f"{row['median_ms']:.3f}{spread}"


def _floor(rows: Sequence[Row]) -> tuple[str, str]:
    low, high = (f"{extreme(row['over_floor'] for row in rows):.2f}" for extreme in (min, max))
    return f"{rows[0]['floor_ms']:.3f}", low if low == high else f"{low} - {high}"
