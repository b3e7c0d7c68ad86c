"""What a device's memory allows: its measured bandwidth, and the bytes that a forward pass must read. Together, the floor of a pass."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.rounds import Round

_COPIED_BYTES = {"cuda": 1 << 30}
_COPIED_BYTES_ELSEWHERE = 1 << 28
"""Several times what caches hold."""
_COPIES, _WARM_UP = 20, 3


def copy_bandwidth(device: torch.device) -> float:
    """Return how many bytes a large copy on ``device`` moves per second, reads and writes together."""
    size = _COPIED_BYTES.get(device.type, _COPIED_BYTES_ELSEWHERE)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = _timed_by_events if device.type == "cuda" else _timed_by_clock
    times = [timed(source, target) for _ in range(_WARM_UP + _COPIES)][_WARM_UP:]
    del source, target
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return 2 * size / median(times)


def _timed_by_clock(source: Tensor, target: Tensor) -> float:
    began = perf_counter()
    target.copy_(source)
    return perf_counter() - began


def _timed_by_events(source: Tensor, target: Tensor) -> float:
    with torch.cuda.device(source.device):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        target.copy_(source)
        ended.record()
        ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000


def weight_bytes_read(model: PreTrainedModel) -> int:
    """Return how many bytes of weights a forward pass over few tokens reads: all but the embedding, unless the head is the same."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    spared = 0 if outputs is None or inputs.weight is outputs.weight else inputs.weight.nbytes
    return sum(weight.nbytes for weight in model.parameters()) - spared


def floors_ms(family: Family, bandwidth: float) -> dict[str, float]:
    """Return, for the target and every student, how long reading its weights takes at ``bandwidth`` (bytes per second)."""
    models = {"target": family.target, **family.students}
    return {name: 1000 * weight_bytes_read(model.model) / bandwidth for name, model in models.items()}


def achieved(family: Family, rounds: Iterable[Round], bandwidth: float) -> dict[str, dict[str, float]]:
    """Return how the models' passes compare with their floors, by model.

    Args:
        family: The models.
        rounds: What they did. A pass of the target is a verification; one of a student, its share of a draft.
        bandwidth: What the device's memory allows (bytes per second).

    Returns:
        ``over_floor``, the median time of a pass over the floor, and ``gb_per_s``, the weights that were read over the median time.
    """
    passes: dict[str, list[float]] = defaultdict(list)
    for record in rounds:
        passes["target"].append(record.verify_ms)
        drafter = record.students[0] if record.students else None
        if drafter in family.students and set(record.students) == {drafter}:
            passes[drafter].append(record.draft_ms / len(record.students))
    over_floor = {name: median(passes[name]) / floor for name, floor in floors_ms(family, bandwidth).items() if passes[name]}
    return {"over_floor": over_floor, "gb_per_s": {name: bandwidth / ratio / 1e9 for name, ratio in over_floor.items()}}


def bandwidth_if_room(device: torch.device) -> float | None:
    """Return the :func:`copy_bandwidth`; None if the device has no memory left to measure it."""
    try:
        return copy_bandwidth(device)
    except torch.OutOfMemoryError:
        return None
