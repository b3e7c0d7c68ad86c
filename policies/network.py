"""A learned policy: a small network in numpy, read from safetensors."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Actions, Policy

Array = NDArray[np.float32]

_ALWAYS_ONE = np.float32(20.0)
"""Its tanh is one in float32."""


class NetworkPolicy(Policy):
    """``logits = W_n tanh(... tanh(W_0 (x / scale) + b_0) ...) + b_n``; the arm is the argmax, the lowest on ties.

    Args:
        scale: Divisors of the features ``[features]``.
        weights: Matrices ``[out, in]``, first layer first.
        biases: Vectors ``[out]``.
    """

    def __init__(self, scale: Array, weights: Sequence[Array], biases: Sequence[Array]) -> None:
        # In float32, lest one vector of integers turn every product into float64.
        scale = scale.astype(np.float32)
        self._tensors = {"scale": scale}
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self._tensors |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        self._layers = list(weights), list(biases)
        self.looks = bool(weights[-1].any())
        # Between two forward passes every call of numpy costs microseconds, whatever it computes. So the scale goes into the first matrix,
        # and every layer has one unit more that is always one, by which the next layer's biases are multiplied.
        self._first, self._first_bias = (weights[0] / scale).astype(np.float32), biases[0]
        self._rest = [np.concatenate([weight, bias[:, None]], axis=1) for weight, bias in zip(weights[1:], biases[1:], strict=True)]
        if self._rest:
            self._first, self._first_bias = np.pad(self._first, ((0, 1), (0, 0))), np.append(biases[0], _ALWAYS_ONE)
            self._rest[:-1] = [np.pad(weight, ((0, 1), (0, 0))) for weight in self._rest[:-1]]
            for weight in self._rest[:-1]:
                weight[-1, -1] = _ALWAYS_ONE

    def layers(self) -> tuple[list[Array], list[Array]]:
        """Return the matrices ``[out, in]``, for scaled features, and the vectors ``[out]``."""
        return self._layers

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(len(bias) for bias in self._layers[1][:-1])

    @property
    def num_features(self) -> int:
        """Length of the observation."""
        return int(self._layers[0][0].shape[1])

    @property
    def num_actions(self) -> int:
        """Number of arms."""
        return len(self._layers[1][-1])

    def check_fits(self, num_features: int, num_actions: int, path: Path) -> None:
        """Refuse to decide for a family or an action space that the policy was not made for.

        Raises:
            UserError: Naming ``path``.
        """
        if (self.num_features, self.num_actions) != (num_features, num_actions):
            raise UserError(
                f"{path}: the policy reads {self.num_features} features and knows {self.num_actions} arms; "
                f"the configuration has {num_features} and {num_actions}"
            )

    def always(self, action: int) -> "NetworkPolicy":
        """Return a policy of the same shape that always chooses ``action``; it can learn to look again."""
        weights, biases = self._layers
        last = np.zeros_like(biases[-1])
        last[action] = 1.0
        return NetworkPolicy(self._tensors["scale"], [*weights[:-1], np.zeros_like(weights[-1])], [*biases[:-1], last])

    def logits(self, observation: Array) -> Array:
        """Return the unnormalised log-probabilities of the arms ``[actions]``."""
        # In place, and by `dot`, which for a vector costs half of what `@` does.
        x: Array = self._first.dot(observation)
        x += self._first_bias
        for weight in self._rest:
            np.tanh(x, out=x)
            x = weight.dot(x)
        return x

    def __call__(self, observation: Array) -> int:
        logits = self.logits(observation)
        action = int(logits.argmax())
        # The argmax of an array with a NaN is the NaN.
        if math.isnan(logits[action]):
            raise ValueError("the policy's logits are not numbers")
        return action

    def batch(self, observations: Array) -> Actions:
        actions: Actions = self.batch_logits(observations).argmax(axis=1)
        return actions

    def batch_logits(self, observations: Array) -> Array:
        """Return the logits of many ``observations [n, features]`` at once ``[n, actions]``."""
        x: Array = observations @ self._first.T
        x += self._first_bias
        for weight in self._rest:
            np.tanh(x, out=x)
            x = x @ weight.T
        return x

    def save(self, path: Path) -> None:
        """Write the policy to a safetensors file."""
        save_file(self.tensors(), path)

    @classmethod
    def load(cls, path: Path) -> "NetworkPolicy":
        """Read a policy that :meth:`save` wrote.

        Raises:
            UserError: The file is missing, corrupt, incomplete or holds numbers that are not finite.
        """
        try:
            return cls.from_tensors(load_file(path))
        except (OSError, SafetensorError, UserError, TypeError, AttributeError) as error:  # the last two: types that numpy lacks
            raise UserError(f"{path}: not a policy that can be read: {error}") from error

    def tensors(self) -> dict[str, Array]:
        """Return all that the policy is made of, by the names in its file."""
        return {key: np.ascontiguousarray(tensor) for key, tensor in self._tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> "NetworkPolicy":
        """Return the policy that :meth:`tensors` came from.

        Raises:
            UserError: A tensor is missing, too many, of another shape or type than its neighbours call for, or not finite.
        """
        layers = range(sum(key.endswith(".weight") for key in tensors))
        names = ["scale", *(f"layers.{i}.{part}" for i in layers for part in ("weight", "bias"))]
        if set(tensors) != set(names) or not layers:
            raise UserError(f"its tensors are {', '.join(sorted(tensors)) or 'none'}; a network has {', '.join(names)}")
        for name, tensor in tensors.items():
            if tensor.dtype != np.float32 and name != "scale":
                raise UserError(f"{name} is {tensor.dtype}, not float32")
            if not np.isfinite(tensor).all():
                raise UserError(f"{name} holds numbers that are not finite")
        if tensors["scale"].ndim != 1 or not (tensors["scale"] > 0).all():
            raise UserError("scale is not a vector of numbers above 0")
        weights, biases = ([tensors[f"layers.{i}.{part}"] for i in layers] for part in ("weight", "bias"))
        width = len(tensors["scale"])
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != width or not len(bias):
                raise UserError(f"layers.{i} has weights {weight.shape} and biases {bias.shape} behind {width} inputs")
            width = len(bias)
        return cls(tensors["scale"], weights, biases)
