"""The benchmark of the kernels: correctness first, one line where there is no GPU, and rows that say what they are."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dispatch_rl import bench
from dispatch_rl.bench import kernel_cases, kernels
from dispatch_rl.bench.case import EAGER, KERNEL, Case
from dispatch_rl.bench.kernel_cases import make_cases
from dispatch_rl.errors import UserError
from dispatch_rl.kernels.entropy import RowStatistics, entropy
from dispatch_rl.kernels.operations import REFERENCES, Operations
from dispatch_rl.kernels.verify import Verified
from tests.helpers import DEVICE, needs_gpu

CPU = torch.device("cpu")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="is for machines without a GPU")
def test_without_a_gpu_the_kernels_are_checked_and_one_line_says_so() -> None:
    """Every kernel is compared in the interpreter; there is no speed to report."""
    with pytest.raises(UserError, match="agree with their references in Triton's interpreter; speed needs a GPU"):
        bench.main(["kernels"])


def broken_entropy(logits: torch.Tensor) -> RowStatistics:
    """Return entropies that are a little too large."""
    found = entropy(logits)
    return found._replace(entropy_nats=found.entropy_nats * 1.01)


def broken_verify(*arguments: Any) -> Verified:
    """Return the wrong token."""
    found = REFERENCES.verify(*arguments)
    found.packed[1] += 1
    return found


def check_all(cases: list[Case]) -> None:
    """Check one after the other."""
    for case in cases:
        case.check()


def broken_attention(q: torch.Tensor, *arguments: Any) -> torch.Tensor:
    """Forget the last position."""
    keys, values, length = arguments
    return REFERENCES.attention(q, keys, values, length - 1)


def unturned(*arguments: Any) -> torch.Tensor:
    """Forget the queries."""
    qkv, *others = arguments
    q = qkv[:, : qkv.shape[1] - len(others[2])].clone()
    found = REFERENCES.rotate_and_store(*arguments)
    return found.copy_(q)


def unstored(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, buffer: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Store everything one position too far."""
    return REFERENCES.rotate_and_store(qkv, cos, sin, buffer, where + 1)


def ungated(gate_up: torch.Tensor) -> torch.Tensor:
    """Mistake what is let through for the gates."""
    return REFERENCES.swiglu(gate_up.roll(gate_up.shape[1] // 2, 1))


BROKEN: dict[str, dict[str, Any]] = {
    "entropy": {"entropy": broken_entropy},
    "verify": {"verify": broken_verify},
    "attention": {"attention": broken_attention},
    "queries": {"rotate_and_store": unturned},
    "cache": {"rotate_and_store": unstored},
    "swiglu": {"swiglu": ungated},
}


@pytest.mark.parametrize("broken", [replace(REFERENCES, **functions) for functions in BROKEN.values()], ids=list(BROKEN))
def test_a_kernel_that_disagrees_has_no_speed(broken: Operations) -> None:
    """The first check that is red ends the benchmark."""
    cases = make_cases(broken, CPU, many=4, few=3, vocab=512, compiled=False, lengths=(20, 40))
    with pytest.raises(UserError, match="disagrees with its reference; no speed is reported"):
        check_all(cases)


def test_every_operation_is_a_case() -> None:
    """Large and small entropies, every way to verify, the chain, and what layers do; the references agree with themselves."""
    cases = make_cases(REFERENCES, CPU, many=4, few=3, vocab=512, compiled=False, lengths=(20, 40))
    assert [(case.operation, case.rows) for case in cases] == [
        ("entropy", 4),
        ("entropy", 3),
        ("verify greedy", 3),
        ("verify coupled", 3),
        ("verify coupled top-k top-p", 3),
        ("verify rejection", 3),
        ("verify coupled + dispatch", 3),
        *((f"attention {heads}, {length} tokens", queries) for heads in ("40/8", "12/2") for length in (20, 40) for queries in (1, 3)),
        *((f"rotate_and_store {heads}", tokens) for heads in ("40/8", "12/2") for tokens in (1, 3)),
        *(("swiglu", tokens) for _ in range(2) for tokens in (1, 3)),
    ]
    check_all(cases)


def test_rows_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MB at 1 GB/s are a floor of 2000 us: 4000 us are half the bandwidth and twice as fast as 8000 us."""
    times = {KERNEL: (4000.0, 3900.0, 4100.0), EAGER: (8000.0, 7900.0, 8100.0)}
    case = Case("entropy", 4, 512, {name: (lambda name=name: name) for name in times}, 2_000_000, by_graph=True)  # type: ignore[misc]
    monkeypatch.setattr(kernels, "_timed", lambda run, by_graph, calls: times[run()])
    rows = kernels.measure(case, 1e9, "some GPU")
    assert [(row["floor_us"], row["bandwidth_share"], row["speedup"], row["timing"]) for row in rows] == [
        (2000, 0.5, 2, "graph replay"),
        (2000, 0.25, 1, "launches"),
    ]
    kernels.write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open() as file:
        assert [row["device"] for row in csv.DictReader(file)] == ["some GPU", "some GPU"]
    assert "50%" in kernels.table(rows)


def test_what_cannot_be_measured_costs_no_other_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A provider that fails has no row, and one line says why; nothing is compared without torch eager."""

    def timed(run: Callable[[], str], by_graph: bool, calls: int) -> tuple[float, float, float]:
        if run() == broken:
            raise RuntimeError("no Triton template\nfor this")
        return 1.0, 1.0, 1.0

    monkeypatch.setattr(kernels, "_timed", timed)
    names = (KERNEL, EAGER, "torch.compile")
    case = Case("entropy", 4, 512, {name: (lambda name=name: name) for name in names}, 2_000_000, by_graph=True)  # type: ignore[misc]
    broken = "torch.compile"
    assert [row["provider"] for row in kernels.measure(case, 1e9, "some GPU")] == [KERNEL, EAGER]
    assert capsys.readouterr().err == "entropy by torch.compile: RuntimeError: no Triton template; not measured\n"
    broken = EAGER
    with pytest.raises(RuntimeError):
        kernels.measure(case, 1e9, "some GPU")


def test_the_largest_network_is_three_layers_of_256() -> None:
    """What the chain is measured with is the largest policy that can be exported."""
    assert kernel_cases.largest_network(CPU).sizes == (256, 256, 256, 5)


@pytest.mark.parametrize("option", ["--many_rows=0", "--few_rows=1", "--vocab=3"])
def test_impossible_sizes_are_refused(option: str) -> None:
    """One line that names the key."""
    with pytest.raises(UserError, match=option.strip("-").partition("=")[0]):
        bench.main(["kernels", option])


@needs_gpu
def test_it_runs_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Small sizes, without torch.compile: a table, and the same rows as CSV and JSON."""
    argv = ["kernels", "--many_rows=300", "--vocab=2048", "--compile=false", f"--csv={tmp_path}/rows.csv", f"--json={tmp_path}/rows.json"]
    bench.main(argv)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["provider"] for row in rows} == {KERNEL, EAGER, "torch log_softmax", "torch graph", "torch whole cache"}
    assert "all kernels agree" in capsys.readouterr().out
