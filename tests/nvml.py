"""A stand-in for the driver's part of NVML, for machines without an NVIDIA GPU."""

from types import SimpleNamespace
from typing import Any

import pynvml


class Driver:
    """Answers like the driver of one GPU. Constants, structures and errors are those of the real ``pynvml``.

    Args:
        name: What NVML calls the GPU.
        counts: Whether it has counters (GPM).
        lacks: Functions that it does not support.
    """

    def __init__(self, name: str = "GPU-0123", counts: bool = True, lacks: tuple[str, ...] = ()) -> None:
        self.name = name
        self.counts = counts
        self.lacks = set(lacks)
        self.open = 0
        self.samples = 0
        self.busy = 0.0
        """Percent of the multiprocessors; half as much of the memory."""
        self.millijoules = 5_000

    def __getattribute__(self, key: str) -> Any:
        if key.startswith("nvml") and key in object.__getattribute__(self, "lacks"):
            return self._unsupported
        return object.__getattribute__(self, key)

    def __getattr__(self, key: str) -> Any:
        return getattr(pynvml, key)

    def _unsupported(self, *_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.1"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:
        return SimpleNamespace(isSupportedDevice=int(self.counts))

    def nvmlGpmSampleAlloc(self) -> Any:
        self.samples += 1
        return pynvml.c_nvmlGpmSample_t()

    def nvmlGpmSampleFree(self, sample: Any) -> None:
        self.samples -= 1

    def nvmlGpmSampleGet(self, handle: str, sample: Any) -> Any:
        return sample

    def nvmlGpmMetricsGet(self, asked: Any) -> Any:
        shares = {pynvml.NVML_GPM_METRIC_SM_UTIL: self.busy, pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: self.busy / 2}
        assert (asked.version, asked.numMetrics) == (pynvml.NVML_GPM_METRICS_GET_VERSION, 2)
        for metric in asked.metrics[:2]:
            metric.nvmlReturn, metric.value = pynvml.NVML_SUCCESS, shares[metric.metricId]
        return asked

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=round(self.busy), memory=round(self.busy / 2))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.millijoules += 250
        return self.millijoules
