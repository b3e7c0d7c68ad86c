"""Made-up recordings and profiles, in the forms that other people may bring."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.replay.profile import TARGET, ForwardLatency, Profile
from dispatch_rl.replay.running import predicted_rounds
from dispatch_rl.replay.schema import METADATA, VERSION, shard_name
from dispatch_rl.replay.traces import load_traces
from dispatch_rl.replay.world import ReplayWorld

Row = dict[str, Any]
"""One text, by the columns of :mod:`dispatch_rl.replay.schema`."""


def write_traces(path: Path, rows: Sequence[Row], metadata: Mapping[str, Any] | None = None) -> Path:
    """Write ``rows`` as a ``.parquet`` or ``.jsonl`` file or, without a suffix, as a folder of ``datasets``.

    With ``metadata``, which becomes ``traces.json``, the folder is a recording with one shard.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(table, path)
    elif metadata is None:
        _save(path, table)
    else:
        _save(path / shard_name(0), table)
        (path / METADATA).write_text(json.dumps({"schema": VERSION, **metadata}), encoding="utf-8")
    return path


def _save(folder: Path, table: pa.Table) -> None:
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table).save_to_disk(str(folder))
    finally:
        datasets.enable_progress_bars()


def random_rows(rng: Random, texts: int, students: Sequence[str] = ("a", "b"), longest: int = 12, lookup: bool = True) -> list[Row]:
    """Return texts of up to ``longest`` tokens along which every student hits and misses at random, the later ones more often."""
    return [_random_row(rng, students, rng.randint(2, longest), lookup) for _ in range(texts)]


def _random_row(rng: Random, students: Sequence[str], length: int, lookup: bool) -> Row:
    prompt = [rng.randrange(100) for _ in range(rng.randint(1, 9))]
    row: Row = {"prompt": prompt, "path": [rng.randrange(100) for _ in range(length)]}
    row["limit"] = len(prompt) + length + rng.choice([0, 0, 3])
    row |= {"entropy": [5 * rng.random() for _ in range(length)], "top1_probability": [rng.random() for _ in range(length)]}
    row["margin"] = [9 * rng.random() for _ in range(length)]
    for i, student in enumerate(students):
        row[f"match_{student}"] = [rng.random() < 1 - 0.5 / (i + 1) for _ in range(length)]
    if lookup:
        row["lookup_match"] = [rng.randint(0, 4) for _ in range(length)]
        row["lookup_drafted"] = [rng.randint(1, 6) if match else 0 for match in row["lookup_match"]]
        row["lookup_accepted"] = [min(rng.randint(0, drafted), length - t) for t, drafted in enumerate(row["lookup_drafted"])]
    return row


def constant(ms: float) -> ForwardLatency:
    """Return a model whose forward pass takes the same time whatever it reads."""
    return ForwardLatency((1,), (1,), ((ms,),))


def made_up_profile(target_ms: float = 10.0, overhead_ms: float = 0.0, token_ms: float = 0.0, **students_ms: float) -> Profile:
    """Return a profile of constant latencies."""
    models = {TARGET: constant(target_ms), **{name: constant(ms) for name, ms in students_ms.items()}}
    return Profile("made up", "float32", models, overhead_ms=overhead_ms, token_ms=token_ms)


def made_up_world(
    path: Path, rows: Sequence[Row], arms: Sequence[Arm], profile: Profile, metadata: Mapping[str, Any] | None = None
) -> ReplayWorld:
    """Write ``rows`` to ``path``, read them back and compile them."""
    return ReplayWorld(load_traces(write_traces(path, rows, metadata)), profile, ArmTable(arms))


def latencies_ms(world: ReplayWorld, text: int, actions: Sequence[int]) -> list[float]:
    """Return how long the rounds of ``text`` take in replay under this sequence of arms."""
    return [record.latency_ms for record in predicted_rounds(world, text, actions)]
