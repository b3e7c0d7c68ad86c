"""Tokenizers, configurations and weights from folders and the hub; whatever goes wrong becomes one line that names the key."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dispatch_rl import hub
from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.errors import UserError, first_line

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_EXTRA = "pip install 'dispatch-rl[quantization]' brings it"

T = TypeVar("T")


class Loader:
    """Loads the parts of a family's models. The hub is only asked if a model is not a folder, and found to be out of reach only once."""

    def __init__(self, config: FamilyConfig, device: torch.device) -> None:
        self._config = config
        self._device = device

    @cached_property
    def _obstacle(self) -> str | None:
        """Why the hub cannot be asked."""
        return hub.obstacle()

    def tokenizer(self, key: str) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the model at a configuration key."""
        tokenizer: PreTrainedTokenizerBase = self._load(key, AutoTokenizer.from_pretrained)
        return tokenizer

    def model_config(self, key: str) -> PreTrainedConfig:
        """Return the configuration of the model at a configuration key."""
        config: PreTrainedConfig = self._load(key, AutoConfig.from_pretrained)
        return config

    def options(self, key: str) -> dict[str, Any]:
        """Return how the model at a configuration key is to be loaded.

        Raises:
            UserError: A package is missing, or the device cannot do what is asked.
        """
        source = self._config.sources[key]
        options: dict[str, Any] = {"dtype": getattr(torch, self._config.dtype_of(source))}
        if source.device_map is not None:
            _check_package(f"{key}.device_map", "accelerate")
            options["device_map"] = source.device_map
        elif source.quantization is not None or _direct(self._device):
            options["device_map"] = str(self._device)
        if source.quantization is not None:
            options["quantization_config"] = _quantization(key, source.quantization, options["dtype"], self._device)
        return options

    def model(self, key: str, options: Mapping[str, Any]) -> PreTrainedModel:
        """Return the model at a configuration key, on its device.

        Raises:
            UserError: A file is missing, corrupt or incomplete.
        """
        source = self._config.sources[key]
        load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
        model, report = self._load(key, load, output_loading_info=True, **options)
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"{key}.path: {resolve(source)} lacks {len(missing)} tensors, {missing[0]} among them")
        if any(weight.is_meta for weight in model.parameters()):
            raise UserError(f"{key}.device_map: parts of {resolve(source)} would stay on the disk; it needs more memory, or quantization")
        loaded: PreTrainedModel = (model if "device_map" in options else model.to(self._device)).eval().requires_grad_(False)
        return loaded

    def _load(self, key: str, load: Callable[..., T], **options: Any) -> T:
        source = self._config.sources[key]
        path = resolve(source)
        local = Path(path).is_dir()
        if not local and not _HUB_ID.fullmatch(path):
            raise UserError(f"{key}.path: there is no folder {path}")
        obstacle = None if local else self._obstacle
        try:
            with hub.cache_only() if obstacle else nullcontext():
                return load(path, revision=source.revision or "main", **options)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            if obstacle and not isinstance(try_to_load_from_cache(path, "config.json", revision=source.revision), str):
                raise UserError(f"{key}.path: {path} is neither a folder here nor in the local cache, and {obstacle}") from error
            alone = f", and {obstacle}" if obstacle else ""
            raise UserError(f"{key}.path: {path} cannot be loaded: {first_line(error)}{alone}") from error


def resolve(source: ModelSource) -> str:
    """Return the folder or hub id that ``source`` names."""
    if not source.path.startswith("pocket:"):
        return source.path
    return str(files("dispatch_rl.pocket") / "family" / source.path.removeprefix("pocket:"))


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' bars about weights that are read from disk; the hub's own bars for downloads stay."""
    shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.logging.enable_progress_bar()


def _direct(device: torch.device) -> bool:
    """Whether weights can be read straight to the device, which saves as much of the computer's own memory as they take."""
    return device.type != "cpu" and find_spec("accelerate") is not None


def _check_package(key: str, package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"{key}: it needs the package {package}; {_EXTRA}")


def _quantization(key: str, method: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return transformers' description of a way to quantise.

    Raises:
        UserError: A package is missing, or the device cannot do it.
    """
    key = f"{key}.quantization"
    library = method.partition("-")[0]
    for package in ("accelerate",) if library == "finegrained" else ("accelerate", library):
        _check_package(key, package)
    if library == "bitsandbytes":
        return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if library == "torchao":
        from torchao import quantization

        kind = quantization.Int8WeightOnlyConfig if method.endswith("int8") else quantization.Float8WeightOnlyConfig
        return transformers.TorchAoConfig(kind())
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(f"{key}: finegrained-fp8 needs a GPU of the Ada generation or later; torchao-fp8 runs anywhere")
    return transformers.FineGrainedFP8Config()
