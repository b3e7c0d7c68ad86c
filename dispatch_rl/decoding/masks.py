"""Who sees whom, as transformers' own forward passes want to be told."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def for_transformers(visible: Tensor, places: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Return a mask that is added to the scores, which every implementation of attention understands; for every kind of layer its own.

    Args:
        visible: Which tokens each new token sees ``[1, 1, new, tokens]``.
        places: Where in the text each token stands ``[tokens]``; where several stand, one of them is in the text.
        config: The model's: it may have layers that only see a window.
        dtype: Of the scores.
    """
    full, window = _added(visible, dtype), getattr(config, "sliding_window", None)
    if window is None:
        return full
    cut = _added(visible & (places[-visible.shape[-2] :, None] - places < window), dtype)
    return cut if getattr(config, "layer_types", None) is None else {"full_attention": full, "sliding_attention": cut}


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
