"""How busy a GPU is: told where a driver tells, for whom it was busy, and never a reason for a run to fail.

No GPU is needed. That there is no driver is tried on the real ``pynvml``; what a driver would answer comes from a stand-in of its functions
(``tests/nvml.py``), because they cannot run without one.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from dispatch_rl import bench, device_use, doctor, nvml, report, utilisation
from dispatch_rl.bandwidth import achieved, weight_bytes_read
from dispatch_rl.contest import Task, compare_live, with_target
from dispatch_rl.decoding.arms import Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.rounds import Round
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.nvml import describe_nvml, open_gpu
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.utilisation import GpuWatch, describe, gpu_uuid, watch_gpu
from tests.nvml import Driver

CPU = torch.device("cpu")
without_a_driver = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver here")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read often."""
    monkeypatch.setattr(utilisation, "INTERVAL_S", 0.01)
    monkeypatch.setattr(nvml, "_TRIAL_S", 0.01)
    monkeypatch.setattr(nvml, "_PERIOD_S", 0.02)


@pytest.fixture
def gpu(quick: None, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Let the processor pass for a GPU with a driver."""
    driver = Driver()
    for module in (utilisation, device_use):
        monkeypatch.setattr(module, "gpu_uuid", lambda device: "0123")
    monkeypatch.setattr(nvml, "_library", lambda: driver)
    return driver


def work(watch: GpuWatch, driver: Driver, busy: float, readings: int = 4) -> None:
    """Keep the GPU so busy until it was read a few times."""
    driver.busy = busy
    enough, patience = len(watch._readings) + readings, monotonic() + 30
    while len(watch._readings) < enough and monotonic() < patience:
        sleep(0.005)


@without_a_driver
def test_without_a_driver_nothing_is_said(recwarn: pytest.WarningsRecorder) -> None:
    """By the real library, which finds no driver here; the doctor alone says why."""
    with ExitStack() as stack:
        assert open_gpu("0123", stack) == (None, None)
    with watch_gpu(CPU) as watch, watch.during("a"):
        pass
    assert (watch.usage("a"), watch.usage(), gpu_uuid(CPU)) == (None, None, None)
    assert describe_nvml() == "cannot be asked how busy a GPU is: NVML Shared Library Not Found"
    assert ("NVML", describe_nvml()) in doctor.devices()
    assert not recwarn.list


@pytest.mark.parametrize(("counts", "kind"), [(True, "counted"), (False, "share of time")])
def test_each_is_told_its_own(gpu: Driver, counts: bool, kind: str) -> None:
    """90 % while one was at work, 10 % while the other was, and readings of both at once are nobody's. A text takes 0.25 J here."""
    gpu.counts = counts
    with watch_gpu(CPU) as watch:
        for name, busy in (("a", 90.0), ("b", 10.0), ("a", 90.0)):
            gpu.busy = busy
            with watch.during(name):
                work(watch, gpu, busy, readings=8)
    first, second, whole = watch.usage("a"), watch.usage("b"), watch.usage()
    assert first is not None
    assert second is not None
    assert whole is not None
    assert first.kind == kind
    assert [first.sm_utilization, first.memory_utilization] == pytest.approx([0.9, 0.45])
    assert [second.sm_utilization, second.memory_utilization] == pytest.approx([0.1, 0.05])
    assert whole.sm_utilization is not None
    assert 0.1 < whole.sm_utilization < 0.9
    assert (first.energy_j, second.energy_j, whole.energy_j) == (0.5, 0.25, 0.25 * 7)
    assert first.row(20)["energy_mj_per_token"] == 25
    assert (gpu.open, gpu.samples) == (0, 0)


@pytest.mark.parametrize(
    ("lacks", "known"),
    [
        (("nvmlDeviceGetTotalEnergyConsumption",), {"sm_utilization", "memory_utilization", "utilization_kind"}),
        (("nvmlGpmQueryDeviceSupport", "nvmlDeviceGetUtilizationRates"), {"energy_j"}),
        (("nvmlGpmMetricsGet", "nvmlDeviceGetTotalEnergyConsumption"), {"sm_utilization", "memory_utilization", "utilization_kind"}),
        (("nvmlDeviceGetHandleByUUID",), set()),
        (("nvmlInit",), set()),
        (("nvmlGpmSampleGet", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTotalEnergyConsumption"), set()),
        (("nvmlShutdown", "nvmlGpmSampleFree"), {"sm_utilization", "memory_utilization", "utilization_kind", "energy_j"}),
    ],
)
def test_what_a_driver_does_not_support_is_left_out(gpu: Driver, lacks: tuple[str, ...], known: set[str]) -> None:
    """As on a slice of a GPU, which has no rates, or on an old card, which counts no energy."""
    gpu.lacks = set(lacks)
    with watch_gpu(CPU) as watch:
        if watch._source is not None:
            work(watch, gpu, 50.0, readings=8)
    usage = watch.usage()
    assert (set() if usage is None else set(usage.row())) == known
    assert bool(usage and describe(usage.row())) == bool(known)


def test_a_driver_that_fails_in_the_middle_stops_the_reading_alone(gpu: Driver) -> None:
    """What was read until then is kept."""
    with watch_gpu(CPU) as watch:
        work(watch, gpu, 50.0)
        gpu.lacks = {"nvmlGpmMetricsGet", "nvmlDeviceGetTotalEnergyConsumption"}
        watch._thread.join(timeout=30)
        with watch.during("a"):
            pass
    assert watch.usage("a") is None
    usage = watch.usage()
    assert usage is not None
    assert (usage.sm_utilization, usage.energy_j) == (0.5, None)


@pytest.mark.parametrize(("name", "found"), [("GPU-0123", True), ("MIG-0123", True), ("GPU-4567", False)])
def test_a_gpu_is_found_by_its_own_number(gpu: Driver, name: str, found: bool) -> None:
    """Not by its place in a list, which CUDA_VISIBLE_DEVICES changes; a slice of a GPU has a number of its own."""
    gpu.name = name
    with ExitStack() as stack:
        source, energy_j = open_gpu("0123", stack)
        assert (source is not None, energy_j is not None) == (found, found)


def test_a_comparison_tells_what_it_saw(gpu: Driver, pocket: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the rows of every policy and in the verdicts; elsewhere there is no such column."""
    gpu.busy = 50.0
    tasks = [Task("code", tuple(range(40, 56)), Sampling(temperature=0.6, seed=seed), 24) for seed in range(2)]
    policies = {"always small-4": FixedPolicy(0)}
    compared = compare_live(pocket, policies, with_target([Arm("small", 4)]), tasks, 0)
    rows = {row["policy"]: row for row in compared.rows()}
    for row in rows.values():
        assert row["energy_j"] == 0.5
        assert row["energy_mj_per_token"] == pytest.approx(500 / sum(compared.tokens + 1))
    assert set(rows["always small-4"]["over_floor"]) == {"target", "small"}
    assert set(rows["target alone"]["gb_per_s"]) == {"target"}
    assert "mJ/token" in report.table(compared.rows())
    said = report.verdicts(compared)
    assert said[-2].startswith("GPU, all the while: ")
    assert said[-1].startswith("a pass over the time that reading its weights takes at ")
    assert json.dumps(compared.rows())
    for module in (utilisation, device_use):
        monkeypatch.setattr(module, "gpu_uuid", lambda device: None)
    plain = compare_live(pocket, policies, with_target([Arm("small", 4)]), tasks[:1], 0)
    assert {"energy_j", "over_floor", "sm_utilization"} & {key for row in plain.rows() for key in row} == set()
    assert "mJ/token" not in report.table(plain.rows())
    assert report.verdicts(plain) == []


def test_the_benchmark_tells_it_of_every_decoder(gpu: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Energy by the number of its texts, here 0.25 J each."""
    sizes = ["--num_prompts=2", "--prompts.max_new_tokens=8", f"--json={tmp_path}/rows.json"]
    bench.main(["decode", *sizes])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["energy_j"] for row in rows] == [0.5, 0.5]
    assert rows[0]["energy_mj_per_token"] == pytest.approx(500 / rows[0]["num_emitted_tokens"])
    printed = capsys.readouterr().out
    assert printed.count(" mJ per token") == 2


def a_round(students: tuple[str, ...], draft_ms: float, verify_ms: float) -> Round:
    """Return a round that drafted as told and of which nothing stood."""
    drafted = tuple(range(len(students)))
    return Round("x", students, drafted, 0, (9,), (0.0,) * (len(drafted) + 1), draft_ms, verify_ms, 0.0)


def test_bandwidth_that_passes_reached_by_hand(pocket: Family) -> None:
    """Medians of 10, 20 and 60 ms to verify, and of 4 / 2 and 3 / 1 ms to draft; a draft of two students is nobody's."""
    rounds = [
        a_round((), 0.0, 10.0),
        a_round(("small", "small"), 4.0, 20.0),
        a_round(("small",), 3.0, 60.0),
        a_round(("small", "large"), 50.0, 20.0),
    ]
    found = achieved(pocket, rounds, 1e9)
    target, small = (weight_bytes_read(model.model) for model in (pocket.target, pocket.students["small"]))
    assert found["over_floor"] == pytest.approx({"target": 20 / (target / 1e6), "small": 2.5 / (small / 1e6)})
    assert found["gb_per_s"] == pytest.approx({"target": target / 20e6, "small": small / 2.5e6})


def test_words_for_what_was_seen() -> None:
    """Counted shares are shares of the machine; others of the time."""
    words: Callable[..., str] = describe
    row: dict[str, Any] = {"sm_utilization": 0.91, "memory_utilization": 0.7, "energy_j": 12.3456, "energy_mj_per_token": 50.0}
    counted = "multiprocessors 91% busy, memory 70% bandwidth used, 12.35 J, 50 mJ per token"
    assert words(row | {"utilization_kind": "counted"}) == counted
    assert words({"sm_utilization": 0.5, "utilization_kind": "share of time"}) == "multiprocessors 50% of the time in use"
    assert words({}) == ""
