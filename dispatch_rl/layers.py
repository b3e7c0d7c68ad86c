"""Between the layers of a network in torch, which learns, and a :class:`NetworkPolicy`, which decides in numpy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dispatch_rl.policies.network import NetworkPolicy

Array = NDArray[np.float32]


def linears(*modules: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of ``modules``, first to last."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def read(layers: Sequence[nn.Linear]) -> tuple[list[Array], list[Array]]:
    """Return copies of the weights ``[out, in]`` and biases ``[out]``."""
    weights = [layer.weight.detach().numpy().copy() for layer in layers]
    return weights, [layer.bias.detach().numpy().copy() for layer in layers]


def write(layers: Sequence[nn.Linear], policy: NetworkPolicy) -> None:
    """Give ``layers`` the weights and biases of ``policy``.

    Raises:
        ValueError: They have other shapes.
    """
    weights, biases = policy.layers()
    if [tuple(layer.weight.shape) for layer in layers] != [weight.shape for weight in weights]:
        raise ValueError("the policies have different shapes")
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
