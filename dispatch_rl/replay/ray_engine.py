"""Recording on the machines of a Ray cluster, or on this one alone: a Ray Data pool of collectors.

Which actor writes a shard, and how often one is killed meanwhile, changes no byte: see :class:`dispatch_rl.replay.collector.Collector`.
"""

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

import torch
from tqdm import tqdm

from dispatch_rl.config import DecodingConfig
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.replay.collector import Collector
from dispatch_rl.replay.recording import Recording
from dispatch_rl.replay.schema import shard_name

if TYPE_CHECKING:
    import pyarrow as pa

_ATTEMPTS = 5
"""How often a shard may take its actor with it before it is given up: an actor may be preempted, but a lack of memory stays."""
_CONNECT_S = 5.0
_OBJECT_STORE_BYTES = 128 << 20
"""Through Ray's memory go numbers of shards; their rows go to the disk."""

_TRIMMINGS = re.compile(r"\x1b\[[\d;]*m|\(raylet[^)]*\)")
_SENTENCE = re.compile(r".{1,200}?(?=[.]\s|[.]?$)", re.MULTILINE)


@dataclass(frozen=True)
class Pool:
    """The actors."""

    num_actors: int | None = None
    """How many; None means one for every GPU, or for every CPU where there is none."""
    gpus_per_actor: int = 1
    """GPUs of each where there are any."""
    address: str | None = None
    """Cluster (``HOST:PORT``, or ``auto`` for the one of this machine); None means RAY_ADDRESS, or else a Ray of our own."""


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
    work = [(index, number) for index, recording in enumerate(recordings) for number in recording.missing(shard, num_shards)]
    shares = ((recording, range(shard, recording.num_shards, num_shards)) for recording in recordings)
    done = sum(recording.num_texts(number) for recording, share in shares for number in share)
    done -= sum(recordings[index].num_texts(number) for index, number in work)
    progress(done)
    _forget_attempts(recordings, work)
    try:
        with _ray(pool, recordings[0], len(work)) as (ray, actors):
            tqdm.write(actors.describe(len(ray.nodes())), file=sys.stderr)
            # With nothing left to do, somebody still has to see that what is there was recorded with the same family and settings.
            for index, number in _results(ray, recordings, actors, work or [(0, 0)]):
                done += recordings[index].num_texts(number)
                progress(done)
    finally:
        _forget_attempts(recordings, work)
    for index, number in work:
        folder = recordings[index].folder / shard_name(number)
        if not folder.is_dir():
            raise UserError(f"output: {folder}, which an actor wrote, is not there; choose a folder on a disk that all machines share")


@dataclass(frozen=True)
class _Actors:
    """What is asked of Ray."""

    number: int
    threads: int
    gpus: int

    def describe(self, machines: int) -> str:
        """Return a line."""
        return (
            f"Ray: {_count(self.number, 'actor')} with {_count(self.threads, 'CPU')} and {_count(self.gpus, 'GPU')} each; "
            f"{_count(machines, 'machine')}"
        )


def _results(
    ray: ModuleType, recordings: Sequence[Recording], actors: _Actors, work: Sequence[tuple[int, int]]
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


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


@contextlib.contextmanager
def _ray(pool: Pool, recording: Recording, shards: int) -> Iterator[tuple[ModuleType, _Actors]]:
    """Join a cluster or start one, and yield it with the actors that it is asked for; whatever Ray says meanwhile becomes short."""
    family = recording.config.family
    if family.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"family.device: Ray hands out the GPUs, so with --engine ray it is auto, cuda or cpu, not {family.device}")
    # As many as one process would use, so that sums are the same to the last bit.
    threads = recording.settings.threads or family.threads or torch.get_num_threads()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = pool.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reached(address)
    ray = _import_ray()
    with contextlib.redirect_stdout(_Notices(sys.stderr)):
        try:
            own = _connect(ray, address, (pool.num_actors or 1) * threads)
            yield ray, _actors(ray.cluster_resources(), pool, family.device, threads, shards, own)
        finally:
            ray.shutdown()


def _import_ray() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError('engine: Ray is not installed; pip install "ray[data]"') from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the files that it also writes stay
            handler.setLevel(logging.CRITICAL)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    return ray


def _connect(ray: ModuleType, address: str, cpus: int) -> bool:
    """Join the cluster at ``address``, or start one for this command alone; return whether it is our own.

    Raises:
        UserError: Nothing answers there.
    """
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if own := address == "local":
        # Nobody else may join, nothing is written to the home folder, and no network is needed.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options |= {"num_cpus": max(cpus, _cores()), "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        options |= {"_node_ip_address": "127.0.0.1"}
    try:
        with _native_stderr_silent():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"ray_address: no Ray to be had at {address}: {first_line(error)}") from error
    return own


def _check_reached(address: str) -> None:
    """Refuse an address where nothing answers; Ray would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdigit():
        raise UserError(f"ray_address: '{address}' is neither HOST:PORT nor auto nor local; run this on a machine of the cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"ray_address: nothing answers at {address}: {first_line(error)}") from error


def _cores() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _actors(there: dict[str, float], pool: Pool, device: str, threads: int, shards: int, own: bool) -> _Actors:
    """Return how many actors to ask for, and with what.

    Raises:
        UserError: A Ray on this machine alone has too few GPUs; a cluster may grow.
    """
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    each = pool.gpus_per_actor if device == "cuda" or (device == "auto" and gpus) else 0
    number = pool.num_actors or max(1, (gpus // each) if each else (cpus // threads))
    if own and number * each > gpus:
        raise UserError(f"num_actors: {number} with {each} GPUs each need {number * each} GPUs; there are {gpus}")
    return _Actors(max(1, min(number, shards)), threads, each)


@contextlib.contextmanager
def _native_stderr_silent() -> Iterator[None]:
    """Hide what C++ writes to the terminal when Ray starts: which log level it was told."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Notices:
    """A stream that takes what Ray prints, a death of an actor in many lines and colours, and passes on the first sentence."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass on what is news."""
        said = _SENTENCE.match(_TRIMMINGS.sub("", text).strip())
        if said and not said[0].startswith("Task "):  # that a task is tried again follows from the death
            tqdm.write(f"Ray: {said[0]}", file=self._stream)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
