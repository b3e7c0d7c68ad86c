"""What the driver of an NVIDIA GPU tells of it, through NVML. What it does not support is None, and no call takes anything down."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from time import monotonic, sleep
from typing import Any, Literal, Protocol

from dispatch_rl.errors import first_line

_PERIOD_S = 1.0
"""The longest while that a driver without counters speaks of."""

_TRIAL_S = 0.1
"""Between the first two counts."""

Kind = Literal["counted", "share of time"]


@dataclass(frozen=True)
class Reading:
    """What a driver told of one while."""

    began: float
    ended: float
    sm: float
    memory: float


class Source(Protocol):
    """Tells how busy a GPU was since it was last asked."""

    kind: Kind

    def read(self) -> Reading | None:
        """Return a reading; None where there is none yet."""

    def close(self) -> None:
        """Give back what was taken."""


class _Counters:
    """Counters of the driver, between two moments."""

    kind: Kind = "counted"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        self._samples = [nvml.nvmlGpmSampleAlloc() for _ in range(2)]
        nvml.nvmlGpmSampleGet(handle, self._samples[0])
        self._taken = monotonic()
        sleep(_TRIAL_S)
        if self.read() is None:  # some drivers offer the counters and keep them to themselves
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    def read(self) -> Reading | None:
        nvml, (before, after) = self._nvml, self._samples
        nvml.nvmlGpmSampleGet(self._handle, after)
        began, self._taken, self._samples = self._taken, monotonic(), [after, before]
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics, asked.sample1, asked.sample2 = nvml.NVML_GPM_METRICS_GET_VERSION, 2, before, after
        asked.metrics[0].metricId, asked.metrics[1].metricId = nvml.NVML_GPM_METRIC_SM_UTIL, nvml.NVML_GPM_METRIC_DRAM_BW_UTIL
        nvml.nvmlGpmMetricsGet(asked)
        sm, memory = asked.metrics[0], asked.metrics[1]
        if any(metric.nvmlReturn != nvml.NVML_SUCCESS or not isfinite(metric.value) for metric in (sm, memory)):
            return None
        return Reading(began, self._taken, sm.value / 100, memory.value / 100)

    def close(self) -> None:
        for sample in self._samples:
            self._nvml.nvmlGpmSampleFree(sample)


class _Rates:
    """The share of the last while, which every driver tells."""

    kind: Kind = "share of time"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        nvml.nvmlDeviceGetUtilizationRates(handle)

    def read(self) -> Reading | None:
        rates, now = self._nvml.nvmlDeviceGetUtilizationRates(self._handle), monotonic()
        return Reading(now - _PERIOD_S, now, rates.gpu / 100, rates.memory / 100)

    def close(self) -> None:
        return


def open_gpu(uuid: str, stack: ExitStack, nvml: Any = None) -> tuple[Source | None, Callable[[], float | None] | None]:
    """Return what tells how busy a GPU is, and what returns the energy (J) that it has used so far.

    Args:
        uuid: Of the GPU, or of a slice of it (MIG).
        stack: Closes what is opened.
        nvml: The module ``pynvml``, or what stands for it; None imports it.
    """
    try:
        nvml = nvml or _library()
        nvml.nvmlInit()
    except Exception:  # no package, no driver, or none that this process may ask
        return None, None
    stack.callback(_quietly, nvml.nvmlShutdown)
    handle = next(filter(None, (_quietly(nvml.nvmlDeviceGetHandleByUUID, f"{kind}-{uuid}") for kind in ("GPU", "MIG"))), None)
    if handle is None:
        return None, None
    source = _quietly(_Counters, nvml, handle) or _quietly(_Rates, nvml, handle)
    if source is not None:
        stack.callback(_quietly, source.close)

    def energy_j() -> float | None:
        millijoules = _quietly(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if millijoules is None else millijoules / 1000

    return source, None if energy_j() is None else energy_j


def _library() -> Any:
    import pynvml

    return pynvml


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call of the driver gives, None if it does not support it; it must never take a run down."""
    try:
        return call(*arguments)
    except Exception:
        return None


def describe_nvml(nvml: Any = None) -> str:
    """Return whether the driver can be asked, in a few words."""
    try:
        nvml = nvml or _library()
        nvml.nvmlInit()
    except Exception as error:
        return f"cannot be asked how busy a GPU is: {first_line(error)}"
    version = _quietly(nvml.nvmlSystemGetDriverVersion)
    count = _quietly(nvml.nvmlDeviceGetCount)
    _quietly(nvml.nvmlShutdown)
    return f"driver {version}, {count} GPUs"
