"""What a family will take of its devices' memory, told by the models' configurations, before a weight is read or downloaded."""

from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.errors import UserError

USUAL_CONTEXT = 4_096
"""Texts are seldom longer (tokens); what a cache for the whole context would take is never taken."""
_BYTES = {"int4": 0.5625, "int8": 1.0, "fp8": 1.0}
"""Bytes of a weight by how it is quantised; four bits share a scale among 64."""
_GIB = 2**30
_ADVICE = "leave students out, quantise them, or give device_map; family.check_memory=false tries anyway"
_ALL_GPUS = "all GPUs"


def check_memory(config: FamilyConfig, model_configs: Mapping[str, PreTrainedConfig], device: torch.device, advice: str = _ADVICE) -> None:
    """Refuse models that do not fit into what is free.

    Args:
        config: How they are loaded.
        model_configs: Those that will be loaded, by configuration key.
        device: Where models go that have no place of their own.
        advice: What can be done about it.

    Raises:
        UserError: Naming the device, the models' shares, and which of them would fit.
    """
    needed: dict[str, dict[str, float]] = defaultdict(dict)
    for key, model_config in model_configs.items():
        source = config.sources[key]
        dtype = getattr(torch, config.dtype_of(source))
        tokens = min(config.max_context or USUAL_CONTEXT, model_config.get_text_config().max_position_embeddings)
        size = _weight_bytes(model_config, dtype, source.quantization) + _cache_bytes(model_config, dtype, tokens)
        needed[_place(source, device)][key] = size
    if _ALL_GPUS in needed:
        # What is spread shares the GPUs with what is not.
        needed[_ALL_GPUS] = {key: size for place, shares in needed.items() if place != "cpu" for key, size in shares.items()}
    for place, shares in needed.items():
        free = _free_bytes(place)
        if free is not None and sum(shares.values()) > free:
            each = ", ".join(f"{_short(key)} {size / _GIB:.3g}" for key, size in shares.items())
            raise UserError(
                f"family: its models need {sum(shares.values()) / _GIB:.3g} GiB on {place}, where {free / _GIB:.3g} GiB are free"
                f"{_enough_for(shares, free)}: {each}; {advice}"
            )


def _short(key: str) -> str:
    return key.removeprefix("family.").removeprefix("students.")


def _enough_for(shares: Mapping[str, float], free: float) -> str:
    """Return in words what would fit: the first of the models, the target if it is among them, and then the smallest."""
    first, *others = shares
    fitting, left = [], free
    for key in (first, *sorted(others, key=lambda key: shares[key])):
        if shares[key] > left:
            break
        fitting.append(key)
        left -= shares[key]
    return f", enough for {' and '.join(_short(key) for key in shares if key in fitting)}" if fitting else ""


def _place(source: ModelSource, device: torch.device) -> str:
    """Return the device that a model goes to, all GPUs if it is spread."""
    try:
        place = device if source.device_map is None else torch.device(source.device_map)  # type: ignore[arg-type]
    except (RuntimeError, TypeError):
        return _ALL_GPUS if torch.cuda.is_available() else "cpu"
    return f"cuda:{torch.cuda.current_device() if place.index is None else place.index}" if place.type == "cuda" else str(place)


def _weight_bytes(config: PreTrainedConfig, dtype: torch.dtype, quantization: str | None) -> float:
    """Return what a model's weights take; a checkpoint that is quantised already says so in its configuration."""
    plain = deepcopy(config)
    stored: Any = getattr(plain, "quantization_config", None)
    if stored is not None:
        del plain.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(plain)
    head = model.get_output_embeddings()
    linears = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear) and module is not head}
    narrow = _BYTES[quantization.rpartition("-")[2]] if quantization else _stored_bytes(stored, dtype)
    return float(sum(weight.numel() * (narrow if id(weight) in linears else dtype.itemsize) for weight in model.parameters()))


def _stored_bytes(stored: Any, dtype: torch.dtype) -> float:
    """Return the bytes of a weight in a checkpoint, given its ``quantization_config``."""
    if stored is None:
        return dtype.itemsize
    told = stored if isinstance(stored, dict) else stored.to_dict()
    if told.get("load_in_4bit") or told.get("bits") == 4 or told.get("w_bit") == 4:
        return _BYTES["int4"]
    return _BYTES["int8"]


def _cache_bytes(config: PreTrainedConfig, dtype: torch.dtype, tokens: int) -> float:
    """Return what keys and values of a text take."""
    inner = config.get_text_config()
    head_dim = getattr(inner, "head_dim", None) or inner.hidden_size // inner.num_attention_heads
    heads = getattr(inner, "num_key_value_heads", None) or inner.num_attention_heads
    return float(2 * inner.num_hidden_layers * heads * head_dim * tokens * dtype.itemsize)


def _free_bytes(place: str) -> float | None:
    """Return the free memory of a device; None if it cannot be told."""
    if place == _ALL_GPUS:
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if place.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(place))[0]
    return min((free for free in (_free_of_machine(), _free_of_container()) if free is not None), default=None) if place == "cpu" else None


def _free_of_machine() -> float | None:
    return _numbers(Path("/proc/meminfo"), 1024).get("MemAvailable:")


def _free_of_container() -> float | None:
    """Return what is left of a container's share; pages of files that were read can be given up."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (float((group / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or no limit
        return None
    return limit - used + _numbers(group / "memory.stat", 1).get("inactive_file", 0.0)


def _numbers(file: Path, unit: int) -> dict[str, float]:
    """Return the numbers in lines such as ``MemAvailable:  1234 kB``."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {row[0]: float(row[1]) * unit for row in rows if len(row) > 1 and row[1].isdigit()}
