"""What a recording or a profile was made with, so that it is not used with anything else."""

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dispatch_rl.config import DecodingConfig, PromptConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.models import CachedModel

_SAMPLED_WEIGHTS = 64
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of a model's configuration that say nothing about what it computes."""


def digest(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def family_fingerprint(family: Family) -> str:
    """Return a hash of architectures, types, some weights of every tensor, and the vocabulary."""
    parts = {name: _model_parts(model) for name, model in {"target": family.target, **family.students}.items()}
    return digest([list(family.students), parts, family.vocab, sorted(family.tokenizer.get_vocab().items())])


def _model_parts(model: CachedModel) -> list[Any]:
    config = {key: value for key, value in model.model.config.to_dict().items() if key not in _VOLATILE}
    tensors = []
    for name, weights in model.model.named_parameters():
        plain = weights.data if type(weights.data) is Tensor else weights.data.dequantize()
        flat = plain.reshape(-1)
        sampled = flat[:: max(1, len(flat) // _SAMPLED_WEIGHTS)][:_SAMPLED_WEIGHTS]
        tensors.append([name, list(weights.shape), str(weights.dtype), sampled.float().tolist()])
    return [config, tensors]


def recording_settings(config: DecodingConfig, part: str, seed: int) -> dict[str, Any]:
    """Return all settings that the texts of a recording depend on besides the family."""
    version = _source_version(config.prompts)
    # These keys came later: recordings that were made before them keep their fingerprints.
    later = {} if config.family.max_context is None else {"max_context": config.family.max_context}
    later |= {"watches": True} if config.watches else {}
    return {
        "part": part,
        "seed": seed,
        "sampling": asdict(config.sampling),
        "prompts": config.prompts.settings(),
        "source_version": version,
        **later,
    }


def _source_version(config: PromptConfig) -> str:
    """Return what tells one state of the prompts from another: the content of files; a hub dataset is told by its name alone."""
    if config.source == "pocket":
        return platform.python_version()  # code prompts are cut from its library
    if config.known is not None:
        return digest(asdict(config.known))
    path = Path(config.source)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(path)), _content(file)] for file in files])


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
