"""A Ray to record with: found or started, quiet, and gone afterwards; and how many actors it is asked for."""

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TextIO

import torch
from tqdm import tqdm

from dispatch_rl.errors import UserError, first_line
from dispatch_rl.replay.recording import Recording

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


@dataclass(frozen=True)
class Actors:
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


@contextlib.contextmanager
def ray_session(pool: Pool, recording: Recording, shards: int) -> Iterator[tuple[ModuleType, Actors]]:
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
    with contextlib.redirect_stdout(Notices(sys.stderr)):
        try:
            own = _connect(ray, address, (pool.num_actors or 1) * threads)
            yield ray, actors_for(ray.cluster_resources(), pool, family.device, threads, shards, own)
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


def actors_for(there: dict[str, float], pool: Pool, device: str, threads: int, shards: int, own: bool) -> Actors:
    """Return how many actors to ask for, and with what.

    Raises:
        UserError: A Ray on this machine alone has too few GPUs; a cluster may grow.
    """
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    each = pool.gpus_per_actor if device == "cuda" or (device == "auto" and gpus) else 0
    number = pool.num_actors or max(1, (gpus // each) if each else (cpus // threads))
    if own and number * each > gpus:
        raise UserError(f"num_actors: {number} with {each} GPUs each need {number * each} GPUs; there are {gpus}")
    return Actors(max(1, min(number, shards)), threads, each)


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


class Notices:
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
