"""A learned policy: a small network in numpy, read from safetensors."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Actions, Policy

Array = NDArray[np.float32]


class NetworkPolicy(Policy):
    """``logits = W_n tanh(... tanh(W_0 (x / scale) + b_0) ...) + b_n``; the arm is the argmax, the lowest on ties.

    Args:
        scale: Divisors of the features ``[features]``.
        weights: Matrices ``[out, in]``, first layer first.
        biases: Vectors ``[out]``.
    """

    def __init__(self, scale: Array, weights: Sequence[Array], biases: Sequence[Array]) -> None:
        # The scale goes into the first matrix, so that a decision is nothing but products and tanh.
        self._tensors = {"scale": scale}
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            self._tensors |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        self._weights: list[Array] = [weights[0] / scale, *weights[1:]]
        self._biases = list(biases)
        self._hidden = list(zip(self._weights[:-1], self._biases[:-1], strict=True))

    def layers(self) -> tuple[list[Array], list[Array]]:
        """Return the matrices ``[out, in]``, for scaled features, and the vectors ``[out]``."""
        return [self._tensors[f"layers.{i}.weight"] for i in range(len(self._weights))], self._biases

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(len(bias) for bias in self._biases[:-1])

    @property
    def num_features(self) -> int:
        """Length of the observation."""
        return int(self._weights[0].shape[1])

    @property
    def num_actions(self) -> int:
        """Number of arms."""
        return len(self._biases[-1])

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

    def logits(self, observation: Array) -> Array:
        """Return the unnormalised log-probabilities of the arms ``[actions]``."""
        x: Array = observation
        # In place, and by `dot`, which for a vector costs half of what `@` does: nothing but calls takes time here.
        for weight, bias in self._hidden:
            x = weight.dot(x)
            x += bias
            np.tanh(x, out=x)
        result: Array = self._weights[-1].dot(x)
        result += self._biases[-1]
        return result

    def __call__(self, observation: Array) -> int:
        logits = self.logits(observation)
        action = int(logits.argmax())
        # The argmax of an array with a NaN is the NaN.
        if math.isnan(logits[action]):
            raise ValueError("the policy's logits are not numbers")
        return action

    def batch(self, observations: Array) -> Actions:
        x: Array = observations
        for weight, bias in self._hidden:
            x = np.tanh(x @ weight.T + bias)
        actions: Actions = (x @ self._weights[-1].T + self._biases[-1]).argmax(axis=1)
        return actions

    def save(self, path: Path) -> None:
        """Write the policy to a safetensors file."""
        save_file({key: np.ascontiguousarray(tensor) for key, tensor in self._tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> "NetworkPolicy":
        """Read a policy that :meth:`save` wrote.

        Raises:
            UserError: The file is missing, corrupt, incomplete or holds numbers that are not finite.
        """
        try:
            tensors = load_file(path)
            layers = range(sum(key.endswith(".weight") for key in tensors))
            policy = cls(
                tensors["scale"],
                [tensors[f"layers.{i}.weight"] for i in layers],
                [tensors[f"layers.{i}.bias"] for i in layers],
            )
        except (OSError, SafetensorError, KeyError, IndexError) as error:
            raise UserError(f"{path}: not a policy that can be read: {error}") from error
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise UserError(f"{path}: the policy holds numbers that are not finite")
        return policy
