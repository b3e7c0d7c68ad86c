"""Bandits: policies that learn while they decode, from the chosen arm only.

The objective is a ratio, total latency / total tokens, so an arm is worth neither its tokens nor its mean ratio. A round pays the tokens
by which it beats ``lambda``, the latency per token reached so far:

    pay = emitted - latency / lambda.

An arm pays more than zero on average exactly if its own latency per token is below ``lambda``. So choosing by pay makes ``lambda`` fall as
long as any arm, or any choice of arms by context, is faster; when ``lambda`` is the least that can be reached, the best choice pays zero
and every other less (Dinkelbach, "On nonlinear fractional programming", 1967; for renewal processes, the average-reward criterion). As
``lambda`` moves, tokens and latency are kept apart, and all past rounds are paid anew with the ``lambda`` of now. A usual round then pays
exactly zero, which is what an arm is expected to pay before it was tried.

These policies do not look beyond a round: that a student which does not draft falls behind, and must catch up later, they cannot see.
For UCB in speculative decoding see Hou et al., "BanditSpec", 2025 (arXiv 2505.15141), whose regret counts rounds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dispatch_rl.policies.base import Observation, Policy

Floats = NDArray[np.float64]


class _Bandit(Policy):
    """Keeps sums of emitted tokens ``e`` and latencies ``t`` of every arm, so that pays follow for any ``lambda``."""

    learns = True
    looks = False

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions
        self._sums: Floats = np.zeros((6, num_actions))
        """Of 1, e, t, e^2, e t and t^2 over the rounds of each arm ``[6, actions]``."""

    def update(self, action: int, emitted: int, latency_ms: float) -> None:
        self._sums[:, action] += (1.0, emitted, latency_ms, emitted**2, emitted * latency_ms, latency_ms**2)

    @property
    def rounds(self) -> Floats:
        """How often each arm was chosen ``[actions]``."""
        rounds: Floats = self._sums[0]
        return rounds

    @property
    def tokens_per_ms(self) -> float:
        """What has been reached so far, ``1 / lambda``; zero before the first round."""
        _, emitted, latency_ms, *_ = self._sums.sum(axis=1).tolist()
        return emitted / latency_ms if latency_ms > 0 else 0.0

    def _pays(self) -> tuple[Floats, Floats, float]:
        """Return the sums of pays and of squared pays of each arm ``[actions]``, and their variance (1 if there is none).

        Pays have mean zero by the definition of ``lambda``, so that is the mean of their squares. Every arm that was tried counts alike: an
        arm that is all that is chosen pays zero in every round, which would make any variance over rounds vanish, and the others with it,
        however unlucky they were.
        """
        rate = self.tokens_per_ms
        n, e, t, ee, et, tt = self._sums
        sums, squares = e - rate * t, np.maximum(ee - 2 * rate * et + rate**2 * tt, 0.0)
        tried = n > 0
        variance = float((squares[tried] / n[tried]).mean()) if tried.any() else 0.0
        return sums, squares, variance if variance > 0 else 1.0


class UCB1Policy(_Bandit):
    """The arm with the highest upper confidence bound; every arm is tried once before.

        bound = mean pay + exploration * sqrt(2 V ln(n) / n_arm)

    UCB1 (Auer et al., "Finite-time analysis of the multiarmed bandit problem", 2002) assumes pays in [0, 1]. As in its variant UCB1-tuned
    and in UCB-V (Audibert et al., 2009), ``V`` is the arm's empirical variance, so the unit of the pays does not matter. An arm of few
    rounds may look constant by chance, so ``V`` also counts ``prior_rounds`` rounds with the variance of all pays.

    Args:
        num_actions: Number of arms.
        exploration: Factor of the confidence term; 1 is UCB1's.
        prior_rounds: Weight of the variance of all pays.
    """

    def __init__(self, num_actions: int, exploration: float = 1.0, prior_rounds: float = 4.0) -> None:
        super().__init__(num_actions)
        self.exploration = exploration
        self.prior_rounds = prior_rounds

    def __call__(self, observation: Observation) -> int:
        untried = int(self.rounds.argmin())
        return untried if self.rounds[untried] == 0 else int(self.bounds().argmax())

    def bounds(self) -> Floats:
        """Return the upper confidence bounds of the pays ``[actions]``, once every arm was tried."""
        sums, squares, variance = self._pays()
        n = self.rounds
        within = np.maximum(squares - sums**2 / n, 0.0)
        v = (within + self.prior_rounds * variance) / (n + self.prior_rounds)
        bounds: Floats = sums / n + self.exploration * np.sqrt(2 * v * np.log(n.sum()) / n)
        return bounds


class ThompsonPolicy(_Bandit):
    """The arm that pays most in a draw from the posterior of each arm's mean pay.

    Pays of an arm are taken as normal with unknown mean and variance. The prior is normal-inverse-gamma with mean 0, worth
    ``prior_rounds`` rounds, and shape ``prior_shape``; its scale is that of the variance of all pays. After ``n`` rounds with mean ``m``
    and sum of squares ``S`` around it (Murphy, "Conjugate Bayesian analysis of the Gaussian distribution", 2007, section 3)

        k = k0 + n,    a = a0 + n / 2,    b = b0 + S / 2 + k0 n m^2 / (2 k),
        variance ~ InverseGamma(a, b),    mean ~ Normal(n m / k, variance / k).

    Args:
        num_actions: Number of arms.
        seed: Seed of the draws.
        prior_rounds: ``k0``.
        prior_shape: ``a0``; ``b0`` is ``a0`` times the variance of all pays.
    """

    def __init__(self, num_actions: int, seed: int, prior_rounds: float = 1.0, prior_shape: float = 1.0) -> None:
        super().__init__(num_actions)
        self.prior_rounds = prior_rounds
        self.prior_shape = prior_shape
        self._rng = np.random.default_rng(seed)

    def __call__(self, observation: Observation) -> int:
        mean, k, a, b = self.posterior()
        variance = b / self._rng.standard_gamma(a)
        return int((mean + np.sqrt(variance / k) * self._rng.standard_normal(self.num_actions)).argmax())

    def posterior(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return mean, ``k``, ``a`` and ``b`` of every arm ``[actions]``."""
        sums, squares, variance = self._pays()
        k = self.prior_rounds + self.rounds
        # S + k0 n m^2 / k = sum of squares - sum^2 / k
        around = np.maximum(squares - sums**2 / k, 0.0)
        return sums / k, k, self.prior_shape + self.rounds / 2, self.prior_shape * variance + around / 2


class LinUCBPolicy(_Bandit):
    """The arm with the highest upper confidence bound on a pay that is linear in the features: LinUCB with disjoint models.

        A = ridge I + sum x x',    theta = A^-1 sum x pay,    bound = theta' x + exploration * s * sqrt(x' A^-1 x)

    with ``x`` the features divided by their scale, at most ``cap``, and a constant (Li et al., "A contextual-bandit approach to
    personalized news article recommendation", 2010, algorithm 1). ``s`` is the standard deviation of all pays; Li's pays lie in [0, 1].
    ``A^-1`` is kept by the Sherman-Morrison formula, and ``theta`` in two parts, of tokens and of latency, because ``lambda`` moves.

    Args:
        num_actions: Number of arms.
        scale: The features' divisors, :attr:`Feature.scale` ``[features]``.
        exploration: Factor of the confidence term.
        ridge: Weight of the prior that features do not matter.
        cap: Largest scaled feature. A linear model is led astray by a student that is far behind.
    """

    looks = True

    def __init__(self, num_actions: int, scale: Sequence[float], exploration: float = 1.0, ridge: float = 1.0, cap: float = 2.0) -> None:
        super().__init__(num_actions)
        self.exploration = exploration
        self.cap = cap
        self._scale: Floats = np.array([*scale, 1.0])
        size = len(self._scale)
        self._inverse: Floats = np.tile(np.eye(size) / ridge, (num_actions, 1, 1))
        self._moments: Floats = np.zeros((num_actions, size, 2))
        self._theta: Floats = np.zeros((num_actions, size, 2))
        self._x: Floats = np.zeros(size)

    def __call__(self, observation: Observation) -> int:
        self._x = np.minimum(np.append(observation, 1.0) / self._scale, self.cap)
        return int(self.bounds(self._x).argmax())

    def bounds(self, x: Floats) -> Floats:
        """Return the upper confidence bounds of the pays at ``x``, the scaled features and the constant ``[actions]``."""
        pay = self._theta @ (1.0, -self.tokens_per_ms) @ x
        # One product for all arms: the inverses lie below each other.
        widths = (self._inverse.reshape(-1, len(x)) @ x).reshape(self.num_actions, -1) @ x
        bounds: Floats = pay + self.exploration * np.sqrt(self._pays()[2] * np.maximum(widths, 0.0))
        return bounds

    def update(self, action: int, emitted: int, latency_ms: float) -> None:
        super().update(action, emitted, latency_ms)
        inverse, x = self._inverse[action], self._x
        along = inverse @ x
        inverse -= np.outer(along, along) / (1.0 + x @ along)
        self._moments[action] += np.outer(x, (emitted, latency_ms))
        self._theta[action] = inverse @ self._moments[action]
