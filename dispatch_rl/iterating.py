"""A run of policy iteration: metrics, checkpoints, the best policy."""

from collections.abc import Callable
from time import monotonic

from dispatch_rl import checkpoints
from dispatch_rl.iteration import PolicyIteration
from dispatch_rl.recorder import Selection


def iterate(learner: PolicyIteration, selection: Selection, progress: Callable[[int, str], None]) -> None:
    """Let ``learner`` do all its iterations, or those that are left of an interrupted run.

    Args:
        learner: New.
        selection: Where policies and metrics go.
        progress: Told the number of states learned from and a line about them.
    """
    states, total = learner.config.states, learner.config.iterations
    began, before = monotonic(), 0.0
    folder = checkpoints.find(selection.run.state)
    if folder is None:
        selection.tracking.rewind(-1)
    else:
        kept = checkpoints.read_state(folder, lambda _, arrays: learner.restore(arrays))
        selection.best, before = kept["best"], kept["seconds"]
        selection.tracking.rewind(learner.iteration * states)
        print(f"going on after {learner.iteration} of {total} iterations")
    while learner.iteration < total:
        lesson = learner.step()
        step, seconds = learner.iteration * states, before + monotonic() - began
        # How much better than an arm taken blindly the best of each state is: what there is to learn.
        row = {"learning/states": float(len(lesson.advantages)), "learning/best_advantage_ms": float(lesson.advantages.min(axis=1).mean())}
        row |= {"decoding/policy_entropy_nats": learner.action_entropy(), "time/seconds": round(seconds, 3)}
        selection.tracking.log(step, row)
        latency_ms = selection.consider(step, learner.policy())
        extra = {"best": selection.best, "seconds": seconds}
        checkpoints.write_state(selection.run.state, learner.state(), {"extra": extra})
        progress(step, f"{latency_ms:.3f} ms per token on validation texts")
