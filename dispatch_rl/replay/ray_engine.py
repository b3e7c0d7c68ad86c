"""Recording on the machines of a Ray cluster, or on this one alone: a Ray Data pool of collectors.

Which actor writes a shard, and how often one is killed meanwhile, changes no byte: see :class:`dispatch_rl.replay.collector.Collector`.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from dispatch_rl.config import DecodingConfig
from dispatch_rl.errors import UserError
from dispatch_rl.replay.collector import Collector
from dispatch_rl.replay.ray_session import Actors, Pool, ray_session
from dispatch_rl.replay.recording import Recording
from dispatch_rl.replay.schema import shard_name

if TYPE_CHECKING:
    import pyarrow as pa

_ATTEMPTS = 5
"""How often a shard may take its actor with it before it is given up: an actor may be preempted, but a lack of memory stays."""


def record_with_ray(
    recordings: Sequence[Recording],
    pool: Pool,
    shard: int = 0,
    num_shards: int = 1,
    progress: Callable[[int], None] = lambda texts: None,
) -> None:
    """Write the shards ``shard``, ``shard + num_shards``, ... of all ``recordings`` that are not there yet.

    Args:
        recordings: What is recorded, with one family, and where: on a disk that all machines share.
        pool: The actors.
        shard: Which share of the work this command does.
        num_shards: Among how many the work is split.
        progress: Told the number of texts that are done.

    Raises:
        UserError: Ray is not installed or reached, or has no GPU where one is needed; or what a collector raises.
    """
    shares = [range(shard, recording.num_shards, num_shards) for recording in recordings]
    missing = [recording.missing(shard, num_shards) for recording in recordings]
    work = {(index, number) for index, numbers in enumerate(missing) for number in numbers}
    # Of what is finished somebody still has to see that it was recorded with the same family and settings.
    tasks = [(index, number) for index, share in enumerate(shares) for number in missing[index] or share[:1]]
    done = sum(recordings[index].num_texts(number) for index, share in enumerate(shares) for number in share if (index, number) not in work)
    progress(done)
    if not tasks:
        return
    _forget_attempts(recordings, tasks)
    try:
        with ray_session(pool, recordings[0], len(tasks)) as (ray, actors):
            tqdm.write(actors.describe(len(ray.nodes())), file=sys.stderr)
            for index, number in _results(ray, recordings, actors, tasks):
                done += recordings[index].num_texts(number) if (index, number) in work else 0
                progress(done)
    finally:
        _forget_attempts(recordings, tasks)
    for index, number in sorted(work):
        folder = recordings[index].folder / shard_name(number)
        if not folder.is_dir():
            raise UserError(f"output: {folder}, which an actor wrote, is not there; choose a folder on a disk that all machines share")


def _results(
    ray: ModuleType, recordings: Sequence[Recording], actors: Actors, work: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Let actors do the work, and yield what is done in the order in which it is."""
    plain = [replace(recording, folder=recording.folder.absolute(), config=_decoding(recording.config)) for recording in recordings]
    # One block for each shard: a block is what goes to an actor, and is given to another when that one dies.
    rows = [{"recording": index, "shard": number} for index, number in work]
    finished = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(plain, actors.threads, Path.cwd()),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors.number, max_tasks_in_flight_per_actor=1),
        num_cpus=actors.threads,
        num_gpus=actors.gpus,
    )
    for row in finished.iter_rows():
        if row["error"] is not None:
            raise UserError(row["error"])
        yield row["recording"], row["shard"]


class _Actor:
    """A collector in a process of Ray's. What a user can mend comes back as a value: Ray would tell it in a hundred lines."""

    def __init__(self, recordings: Sequence[Recording], threads: int, folder: Path) -> None:
        if folder.is_dir():
            os.chdir(folder)  # the configuration may name files relative to it
        torch.set_num_threads(threads)  # Ray has its own idea
        self._collector = Collector(recordings)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Write one shard and return its numbers with what went wrong, or null."""
        (row,) = batch.to_pylist()
        try:
            self._write(row["recording"], row["shard"])
            error = None
        except UserError as wrong:
            error = str(wrong)
        except OSError as wrong:
            if wrong.filename is None:
                raise
            error = f"{wrong.filename}: {wrong.strerror}"
        return batch.append_column("error", _strings([error]))

    def _write(self, index: int, number: int) -> None:
        attempts = _attempts(self._collector.recordings[index].folder, number)
        died = len(attempts.read_text().split()) if attempts.exists() else 0
        if died == _ATTEMPTS:
            raise UserError(
                f"engine: {died} actors died one after the other at {attempts.stem[1:]}, often for want of memory: take fewer with "
                "--num_actors or a smaller recording.batch_size; what is finished stays, and the same command goes on"
            )
        attempts.parent.mkdir(parents=True, exist_ok=True)
        with attempts.open("a") as file:
            file.write(f"{os.getpid()}\n")
        try:
            self._collector({"recording": [index], "shard": [number]})
        finally:
            attempts.unlink(missing_ok=True)


def _strings(values: list[str | None]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(values, pa.string())


def _attempts(folder: Path, number: int) -> Path:
    """Return the file that has a line, its process id, for every actor that began a shard and has not ended it."""
    return folder.parent / f".{folder.name}-{shard_name(number)}.attempts"


def _forget_attempts(recordings: Sequence[Recording], work: Sequence[tuple[int, int]]) -> None:
    for index, number in work:
        _attempts(recordings[index].folder, number).unlink(missing_ok=True)


def _decoding(config: DecodingConfig) -> DecodingConfig:
    """Return what a recording needs of a larger configuration, which may be of a class that only this process knows."""
    return DecodingConfig(**{field.name: getattr(config, field.name) for field in fields(DecodingConfig)})
