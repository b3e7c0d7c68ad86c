"""Products with weights that may be read ahead: measured, and without a trace in the results."""

from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

from dispatch_rl.decoding import projections
from dispatch_rl.decoding.projections import Linear, choose_order


def weight(outputs: int, inputs: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random weights ``[outputs, inputs]``."""
    return torch.randn((outputs, inputs), generator=torch.Generator().manual_seed(outputs)).to(dtype)


@pytest.mark.parametrize(("plain", "ahead"), [(3.0, 2.0), (2.0, 3.0)], ids=["worth it", "not worth it"])
def test_weights_are_read_ahead_where_that_is_faster(plain: float, ahead: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least time of each pass counts: what something else delayed decides nothing."""
    passes = [9.0, plain, ahead, ahead] + [plain, plain, ahead, ahead] * 3 + [plain, 9.0, ahead, 9.0]
    clock = iter([0.0, *accumulate(time for took in passes for time in (took, 1.0))])
    monkeypatch.setattr(projections, "perf_counter", lambda: next(clock))
    linears = [Linear(weight(8, 4), None), Linear(weight(4, 8), weight(4, 1)[:, 0])]
    choose_order(linears)
    assert [linear.reads_ahead for linear in linears] == [ahead < plain] * 2


def test_every_pass_is_timed_after_other_memory_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a round: weights that the pass before left near would make reading them ahead look useless."""
    events: list[str] = []
    elsewhere = SimpleNamespace(sum=lambda: events.append("elsewhere"))

    def clock() -> float:
        events.append("clock")
        return 0.0

    linear = Linear(weight(8, 4), None)
    monkeypatch.setattr(projections, "perf_counter", clock)
    monkeypatch.setattr(torch, "zeros", lambda _: elsewhere)
    choose_order([linear])
    assert events == ["elsewhere", "clock", "clock"] * (len(events) // 3)
    assert events


def test_only_what_stays_near_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights, and those that are not multiplied in float32, are not even timed."""
    linears = [Linear(weight(1025, 512), None), Linear(weight(8, 4, torch.bfloat16), None)]
    monkeypatch.setattr(projections, "perf_counter", lambda: pytest.fail("timed"))
    choose_order(linears)
    assert not any(linear.reads_ahead for linear in linears)


@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_reading_ahead_changes_no_bit(rows: int) -> None:
    """So texts do not depend on what a machine's clock said when the model was loaded."""
    linear, x = Linear(weight(160, 96), weight(160, 1)[:, 0]), weight(rows, 96)
    found = []
    for linear.reads_ahead in (False, True):
        sums = torch.ones(rows, 160)
        linear.add_to(sums, x)
        found.append((linear(x), sums))
    assert all(map(torch.equal, *found))
