"""A learner at work: its lessons, metrics, checkpoints and the best policy."""

from collections.abc import Callable, Sequence

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from dispatch_rl import checkpoints
from dispatch_rl.config import TrainConfig
from dispatch_rl.decoding.features import Feature
from dispatch_rl.envs.replay_vector import ReplayVecEnv, ReplayVectorEnv
from dispatch_rl.envs.tally import Tally
from dispatch_rl.iteration import PolicyIteration
from dispatch_rl.learning import build_learner, start_from
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.race import Race, iterate
from dispatch_rl.recorder import Recorder
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.selection import Selection

Progress = Callable[[int, str], None]
"""Told the number of rounds learned from and a line about them."""


def learn_on_replay(
    config: TrainConfig,
    world: ReplayWorld,
    selection: Selection,
    update: Progress,
    initial: NetworkPolicy | None = None,
    env: ReplayVectorEnv | None = None,
) -> None:
    """Let the configured learner learn from the texts of ``world``, or go on with it.

    What is kept is at least as fast on the validation texts as every fixed arm.

    Args:
        config: Who learns, and how.
        world: What is replayed.
        selection: Where policies and metrics go.
        update: Progress.
        initial: The policy to begin with; None begins with one that has no preference.
        env: The environment over ``world``, if it is there already; policy iteration needs none.
    """
    if config.algorithm == "policy_iteration":
        settings = config.policy_iteration

        def begin(seed: int, among: Sequence[int] | None) -> PolicyIteration:
            return PolicyIteration(world, settings, seed, initial, among if initial is None else None)

        iterate(Race(begin, world, settings, config.seed), selection, update)
    else:
        env = ReplayVectorEnv(config.num_envs, config, world=world) if env is None else env
        learn_by_sampling(ReplayVecEnv(env), world.features, env.tally, config, selection, initial, update)
    if (action := selection.fall_back()) is not None:
        print(f"on validation texts no learned policy was faster than always {world.arms[action].name}, which is kept instead")


def learn_by_sampling(
    env: VecEnv,
    features: tuple[Feature, ...],
    tally: Tally,
    config: TrainConfig,
    selection: Selection,
    initial: NetworkPolicy | None,
    update: Progress,
) -> None:
    """Let one of Stable-Baselines3's learners learn, or go on with what its run's folder holds of it.

    Args:
        env: Rounds to learn from.
        features: What is observed.
        tally: Sums over those rounds.
        config: Who learns, and how.
        selection: Where policies and metrics go.
        initial: The policy to begin with, for PPO; None begins with one that has no preference.
        update: Progress.
    """
    model = build_learner(env, features, config, None)
    if initial is not None and isinstance(model, PPO):
        start_from(model, initial)
    recorder = Recorder(selection, tally, config.live, config.validation_interval, update)
    recorder.attach(model)
    state = checkpoints.find(selection.run.state)
    if state is None:
        selection.tracking.rewind(-1)
    else:
        recorder.resume(state)
        print(f"going on after {model.num_timesteps} of {config.total_steps} rounds")
    left = config.total_steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=recorder, reset_num_timesteps=state is None)
    if recorder.validated_at < model.num_timesteps:
        recorder.validate_now()
