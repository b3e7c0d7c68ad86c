"""How busy a GPU is while something runs, as its driver tells through NVML: multiprocessors, memory bandwidth, energy.

Where there is no NVIDIA GPU, no driver, or a driver that does not tell, there is nothing to say, and nothing is said. On Hopper and later
the driver counts between two moments (GPM): the share of multiprocessors that were busy, and of the memory's bandwidth. Elsewhere it tells
the share of a recent while, up to a second, in which anything ran, and in which memory was read or written, which is more than its
share of the bandwidth; so readings say which of the two they are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any

from dispatch_rl.nvml import Kind, Reading, Source, open_gpu

if TYPE_CHECKING:
    import torch

INTERVAL_S = 0.1
"""Between two readings."""


@dataclass(frozen=True)
class Usage:
    """What a GPU did meanwhile; None where the driver does not tell."""

    kind: Kind | None
    """``counted``: shares of multiprocessors and of the bandwidth; ``share of time``: in which any of them was in use. None if neither."""
    sm_utilization: float | None
    """0 to 1."""
    memory_utilization: float | None
    """0 to 1."""
    energy_j: float | None
    """Of the whole GPU."""

    def row(self, tokens: int | None = None) -> dict[str, Any]:
        """Return what is known under the names of a table's columns; energy per token if it is told how many there were."""
        told = {"sm_utilization": self.sm_utilization, "memory_utilization": self.memory_utilization, "energy_j": self.energy_j}
        known: dict[str, Any] = {key: value for key, value in told.items() if value is not None}
        if "sm_utilization" in known:
            known["utilization_kind"] = self.kind
        if tokens and self.energy_j is not None:
            known["energy_mj_per_token"] = 1000 * self.energy_j / tokens
        return known


def describe(row: Mapping[str, Any]) -> str:
    """Return what a row tells of the use of a GPU in a few words; empty if it tells nothing."""
    counted = row.get("utilization_kind") == "counted"
    busy, memory = ("busy", "bandwidth used") if counted else ("of the time in use", "of the time read or written")
    forms = {
        "sm_utilization": f"multiprocessors {{:.0%}} {busy}",
        "memory_utilization": f"memory {{:.0%}} {memory}",
        "energy_j": "{:.4g} J",
        "energy_mj_per_token": "{:.4g} mJ per token",
    }
    return ", ".join(form.format(row[key]) for key, form in forms.items() if key in row)


class GpuWatch:
    """Reads what a GPU does, ten times a second, from :meth:`start` to :meth:`stop`.

    Args:
        source: Tells how busy the GPU is; None if nobody does.
        energy_j: Returns the energy that the GPU has used so far; None if the driver does not tell.
    """

    def __init__(self, source: Source | None = None, energy_j: Callable[[], float | None] | None = None) -> None:
        self._source = source
        self._energy_j = energy_j or (lambda: None)
        self._readings: list[Reading] = []
        self._spans: dict[str | None, list[tuple[float, float, float | None]]] = {}
        self._stopped = Event()
        self._thread = Thread(target=self._go_on, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._began = (monotonic(), self._energy_j())
        if self._source is not None:
            self._thread.start()

    def stop(self) -> None:
        """End, and keep what was read."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._note(None, *self._began)

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Take what happens inside as the doing of ``name``."""
        began = (monotonic(), self._energy_j())
        try:
            yield
        finally:
            self._note(name, *began)

    def usage(self, name: str | None = None) -> Usage | None:
        """Return what the GPU did for ``name``, None meaning all the while; nothing if the driver told nothing.

        A reading counts if ``name`` was at work through all the while that it speaks of.
        """
        spans = self._spans.get(name, [])
        inside = [r for r in self._readings if any(began <= r.began and r.ended <= ended for began, ended, _ in spans)]
        energies = [energy for _, _, energy in spans if energy is not None]
        energy_j = sum(energies) if spans and len(energies) == len(spans) else None
        if not inside and energy_j is None:
            return None
        sm, memory = (sum(values) / len(inside) if inside else None for values in ([r.sm for r in inside], [r.memory for r in inside]))
        kind = None if self._source is None else self._source.kind
        return Usage(kind, sm, memory, energy_j)

    def _note(self, name: str | None, began: float, energy_before: float | None) -> None:
        energy = self._energy_j()
        used = None if energy is None or energy_before is None else energy - energy_before
        self._spans.setdefault(name, []).append((began, monotonic(), used))

    def _go_on(self) -> None:
        assert self._source is not None
        while not self._stopped.wait(INTERVAL_S):
            try:
                reading = self._source.read()
            except Exception:  # whatever a driver does, what is measured goes on
                return
            if reading is not None:
                self._readings.append(reading)


def gpu_uuid(device: "torch.device") -> str | None:
    """Return by which name NVML knows a device, whatever CUDA_VISIBLE_DEVICES numbers it; None if it is no NVIDIA GPU."""
    if device.type != "cuda":
        return None
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)


@contextmanager
def watch_gpu(device: "torch.device") -> Iterator[GpuWatch]:
    """Watch a device as long as the context lasts; if it is no GPU, or has a driver that does not tell, nothing is read."""
    uuid = gpu_uuid(device)
    with ExitStack() as stack:
        watch = GpuWatch() if uuid is None else GpuWatch(*open_gpu(uuid, stack))
        watch.start()
        stack.callback(watch.stop)
        yield watch
