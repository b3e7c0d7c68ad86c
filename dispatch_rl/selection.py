"""The best policy of a training: validated, kept, and chosen while a learner learns."""

from pathlib import Path

from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.runs import RunFolder, write_json
from dispatch_rl.tracking.base import Tracking
from dispatch_rl.validation import Validation

_LATENCY = "validation/latency_ms_per_token"


class Selection:
    """Validates policies, keeps them, and knows the best.

    Args:
        run: Where policies go.
        tracking: Where metrics go.
        validate: Returns metrics of a policy on validation prompts; by ``latency_ms_per_token`` the best policy is chosen.
    """

    def __init__(self, run: RunFolder, tracking: Tracking, validate: Validation) -> None:
        self.run = run
        self.tracking = tracking
        self.validate = validate
        self.best: dict[str, float] = {}
        """What validation said about the best policy."""

    def consider(self, step: int, policy: NetworkPolicy) -> float:
        """Validate a policy after ``step`` rounds, keep it, as the best if no other was faster, and return its latency (ms per token)."""
        found = self._validated(policy)
        _save(policy, self.run.checkpoint(step))
        self._keep_if_best(policy, found, None)
        self.tracking.log(step, found)
        return found[_LATENCY]

    def fall_back(self) -> int | None:
        """Keep a policy that always chooses the best fixed arm, if that is faster than the best so far, and return the arm's number."""
        action = self.validate.best_fixed
        if action is None:
            return None
        policy = NetworkPolicy.load(self.run.best_policy).always(action)
        return action if self._keep_if_best(policy, self._validated(policy), action) else None

    def _validated(self, policy: NetworkPolicy) -> dict[str, float]:
        return {f"validation/{key}": value for key, value in self.validate(policy).items()}

    def _keep_if_best(self, policy: NetworkPolicy, found: dict[str, float], always: int | None) -> bool:
        better = found[_LATENCY] < self.best.get(_LATENCY, float("inf"))
        if better:
            self.best = found
            _save(policy, self.run.best_policy)
            write_json(self.run.best_validation, {"always": always, **found})
        return better


def _save(policy: NetworkPolicy, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    policy.save(temporary)
    temporary.replace(path)
