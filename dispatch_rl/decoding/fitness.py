"""Whether a model can decode here at all, as its configuration tells before a weight is read, and a first pass before a text is."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig

from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.errors import UserError

_ROLLED_BACK = {"full_attention", "sliding_attention"}
"""Kinds of layers whose memory is keys and values, so that tokens can be forgotten."""
_TOKENS = 16
"""Tokens that a model is tried with."""


def check_architecture(key: str, config: PreTrainedConfig) -> None:
    """Refuse a model that cannot forget tokens, or does not tell how many it reads.

    Raises:
        UserError: Naming ``key``.
    """
    config = config.get_text_config()
    if strange := sorted({*(getattr(config, "layer_types", None) or ())} - _ROLLED_BACK):
        raise UserError(f"{key}: {config.model_type} has layers of the kind {strange[0]}, which cannot take back what they have read")
    if not isinstance(getattr(config, "max_position_embeddings", None), int):
        raise UserError(f"{key}: {config.model_type} does not tell how long a text it reads (max_position_embeddings)")


@torch.inference_mode()
def check_numbers(models: Mapping[str, CachedModel]) -> None:
    """Refuse a model that computes what is no number, as some do in float16.

    Args:
        models: By configuration key.

    Raises:
        UserError: Naming the key.
    """
    for key, model in models.items():
        tokens = torch.arange(_TOKENS, device=model.device)[None] % model.vocab
        logits = model.forward_batch(tokens, torch.ones_like(tokens), None, _TOKENS)
        if not ((logits < torch.inf).all() and logits.isfinite().any(-1).all()):
            dtype = str(model.model.dtype).removeprefix("torch.")
            raise UserError(f"{key}: its logits are not numbers in {dtype}; bfloat16 or float32 may do, unless its weights are broken")
