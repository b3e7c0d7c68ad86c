"""A family of the right shapes whose weights are random: enough for every question about time, and for none about text."""

from collections.abc import Collection
from dataclasses import replace

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from dispatch_rl.config import FamilyConfig
from dispatch_rl.decoding.families import Family, assemble, find_device
from dispatch_rl.decoding.loading import Loader
from dispatch_rl.decoding.memory import check_memory
from dispatch_rl.decoding.shapes import known_config
from dispatch_rl.errors import UserError

_ADVICE = "take fewer by --students; family.check_memory=false tries anyway"


def random_family(config: FamilyConfig, students: Collection[str] | None = None, seed: int = 0) -> Family:
    """Build the models of ``config`` from their configurations alone, each weight on the device and in its type from the beginning.

    Quantisation and ``device_map`` are left out, and no tokenizer is read: the family decodes numbers of tokens, not text.

    Args:
        config: The models; folders need hold no more than a ``config.json``.
        students: Which of its students are built; None means all.
        seed: Of the weights.

    Raises:
        UserError: A configuration is not to be had, or memory would not do.
    """
    given, config = config, _plain(config, students)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device)
    model_configs, remarks = _model_configs(config, device)
    if any(given.sources[key] != source for key, source in config.sources.items()):
        remarks.append(f"quantization and device_map are left out: every model is whole, on {device}")
    if config.check_memory:
        check_memory(config, model_configs, device, _ADVICE)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        dtypes = {key: getattr(torch, config.dtype_of(source)) for key, source in config.sources.items()}
        models = {key: random_model(model_config, dtypes[key], device) for key, model_config in model_configs.items()}
    nothing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")))
    return assemble(config, models, nothing, device, remarks)


def random_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a model whose weights were never anywhere but on ``device``, nor of any other type."""
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.eval().requires_grad_(False)
    return model


def _plain(config: FamilyConfig, students: Collection[str] | None) -> FamilyConfig:
    """Return ``config`` with these students, no quantisation and everything on one device."""
    chosen = list(config.students if students is None else students)
    if strange := [name for name in chosen if name not in config.students]:
        raise UserError(f"students: the family has no '{strange[0]}'; it has {', '.join(config.students) or 'none'}")
    sources = {name: replace(config.students[name], quantization=None, device_map=None) for name in config.students if name in chosen}
    return replace(config, target=replace(config.target, quantization=None, device_map=None), students=sources)


def _model_configs(config: FamilyConfig, device: torch.device) -> tuple[dict[str, PreTrainedConfig], list[str]]:
    """Return the models' configurations by key: as the hub has them, or as known here where it cannot be asked; and what to say of it."""
    loader, found, ours = Loader(config, device), {}, []
    for key, source in config.sources.items():
        try:
            found[key] = loader.model_config(key)
        except UserError:
            known = known_config(source.path)
            if known is None:
                raise
            found[key] = known
            ours.append(key.removeprefix("family.").removeprefix("students."))
    return found, [f"{', '.join(ours)}: the shapes that ship with the package, since the hub does not tell"] if ours else []
