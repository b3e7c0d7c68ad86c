"""Train a dispatcher: ``python -m dispatch_rl.train --config configs/pocket.yaml``."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.agent import run_name

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from dispatch_rl.decoding.families import Family
    from dispatch_rl.decoding.features import Feature
    from dispatch_rl.envs.tally import Tally
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.replay.sources import ReplaySource
    from dispatch_rl.runs import RunFolder
    from dispatch_rl.tracking.base import Tracking
    from dispatch_rl.validation import Validation

_DESCRIPTION = (
    "Train a dispatcher on replay or on real decoding and compare it with the baselines. "
    "`--resume RUN`, alone, goes on with a run that was interrupted, as runs/pocket."
)


def main(argv: Sequence[str]) -> None:
    """Learn, keep the best policy, and compare it with the baselines."""
    if any(word.partition("=")[0] == "--resume" for word in argv):
        resume(_resumed(argv))
        return
    parser = cli.make_parser(TrainConfig, "train", _DESCRIPTION)
    namespace = cli.parse(parser, argv)
    namespace.name, namespace.algo = run_name(namespace.name), named_learner(namespace.algo, argv)
    config = cli.build(TrainConfig, parser, namespace)
    check(config)

    from dispatch_rl.runs import RunFolder

    run = RunFolder.claim(config.runs / config.name, overwrite=config.overwrite)
    namespace.overwrite = False  # whoever trains by the run's own configuration must not lose the run
    Training(run, config).run(parser.dump(namespace))


def named_learner(algo: str | None, argv: Sequence[str]) -> str | None:
    """Return who learns, as far as that was said: a sweep may give PPO the very values that it has anyway."""
    return "ppo" if algo is None and any(word.startswith("--ppo") for word in argv) else algo


def _resumed(argv: Sequence[str]) -> Path:
    words = [part for word in argv for part in word.split("=", 1)]
    if len(words) != 2 or words[0] != "--resume":
        raise UserError("resume: the run's own configuration is used; write --resume RUN and no other option")
    return Path(words[1])


def resume(path: Path) -> None:
    """Go on with a run that was interrupted.

    Raises:
        UserError: There is no such run, or nothing of its state is left.
    """
    from dispatch_rl.runs import RunFolder

    run = RunFolder.open(path)
    if run.finished:
        print(f"{path}: this run is finished; python -m dispatch_rl.evaluate {path} measures it again")
        return
    Training(run, cli.read_config(TrainConfig, run.config)).run(None)


def check(config: TrainConfig) -> None:
    """Refuse what cannot work, before anything is loaded or written.

    Raises:
        UserError: Naming the key.
    """
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.policies.threshold import ThresholdPolicy
    from dispatch_rl.replay.recording import check_sampling
    from dispatch_rl.tracking.weights_and_biases import wanted_mode

    if config.track is not None:
        wanted_mode(config.tracking)
    if not config.live:
        check_sampling(config.sampling)
    if config.replay.traces is None or config.live:
        students = tuple(config.family.students)
        arms = ArmTable(config.arm_list())
        arms.check_students(students)
        if ThresholdPolicy.is_possible(config.threshold, students, arms):
            ThresholdPolicy.from_config(config.threshold, students, arms)
        if not config.live:
            config.recording.check_arms(arms)
    elif not config.replay.traces.exists():
        raise UserError(f"replay.traces: there is no recording {config.replay.traces}")
    if config.replay.profile is not None and not config.replay.profile.is_file():
        raise UserError(f"replay.profile: there is no file {config.replay.profile}")


class Training:
    """One training run, from its texts to its evaluation."""

    def __init__(self, run: "RunFolder", config: TrainConfig) -> None:
        self.folder = run
        self.config = config
        self.family: Family | None = None
        self.source: ReplaySource | None = None

    def run(self, config_yaml: str | None) -> None:
        """Prepare, learn and evaluate; ``config_yaml`` begins the folder anew, None goes on with what is in it."""
        import torch

        from dispatch_rl.decoding.families import load_family
        from dispatch_rl.evaluate import evaluate_run
        from dispatch_rl.export import track_policy
        from dispatch_rl.progress import progress_bar
        from dispatch_rl.replay.sources import open_replay
        from dispatch_rl.run_card import write_card
        from dispatch_rl.tracking.opening import open_tracking

        config = self.config
        if config.family.threads is not None:
            torch.set_num_threads(config.family.threads)
        if not config.live:
            self.source = open_replay(config, None, progress_bar)
        if config.live or config.evaluation.prompts or (self.source and self.source.needs_family):
            self.family = load_family(config.family) if self.source is None else self.source.family
            print(self.family.describe())
        env, features, tally, validate = self._prepare_live() if config.live else self._prepare_replay()
        names = [feature.name for feature in features]
        initial = self._initial_policy(names, tally.arms)
        if config_yaml is not None:
            device = "replay" if self.family is None else self.family.device_name()
            self.folder.begin(config_yaml, device, names, tally.arms, overwrite=config.overwrite)
        write_card(self.folder, config)
        with open_tracking(self.folder, config) as tracking:
            learned = self._learn(env, features, tally, validate, initial, tracking)
            evaluate_run(self.folder, config, learned, self.family, self.source, tracking)
            if config.track is not None:
                track_policy(self.folder, config, self.family, tracking)
        self.folder.finish()
        write_card(self.folder, config)

    def _prepare_replay(self) -> "tuple[VecEnv, tuple[Feature, ...], Tally, Validation]":
        from dispatch_rl.contest import check_decodable
        from dispatch_rl.envs.replay_vector import ReplayVecEnv, ReplayVectorEnv
        from dispatch_rl.policies.threshold import ThresholdPolicy
        from dispatch_rl.replay.caps import doubts
        from dispatch_rl.validation import ReplayValidation

        assert self.source is not None
        world, validation, test = (self.source.world(part) for part in ("train", "validation", "test"))
        for part in (validation, test):
            if (part.traces.students, part.features) != (world.traces.students, world.features):
                raise UserError(f"replay.traces: {part.traces.source} has other students or columns than {world.traces.source}")
        if self.family is not None and self.config.evaluation.prompts:
            check_decodable(test.traces, self.family)
        students = world.traces.students
        if ThresholdPolicy.is_possible(self.config.threshold, students, world.arms) and "entropy" in world.traces.floats:
            ThresholdPolicy.from_config(self.config.threshold, students, world.arms)
        env = ReplayVectorEnv(self.config.num_envs, self.config, world=world)
        traces = world.traces
        print(f"{traces.num_texts} texts, {traces.num_positions} tokens, from {traces.source}; {world.profile.device}")
        for line in doubts(traces, world.arms):
            print(line)
        print(f"best fixed arm on them: {env.reward.reference_ms_per_token:.3f} ms per token")
        return ReplayVecEnv(env), world.features, env.tally, ReplayValidation(validation)

    def _prepare_live(self) -> "tuple[VecEnv, tuple[Feature, ...], Tally, Validation]":
        from stable_baselines3.common.monitor import Monitor
        from stable_baselines3.common.vec_env import DummyVecEnv

        from dispatch_rl.decoding.fitness import check_numbers
        from dispatch_rl.envs.live import LiveDecodingEnv
        from dispatch_rl.envs.tally import Tally
        from dispatch_rl.prompts import prompts
        from dispatch_rl.validation import LiveValidation

        config, family = self.config, self.family
        assert family is not None
        check_numbers(family.by_key())
        env = LiveDecodingEnv(config, family=family)
        validation = list(islice(prompts(config.prompts, family, "validation", config.seed), config.validation_prompts))
        print(f"target alone {env.reward.reference_ms_per_token:.2f} ms per token")

        measured = LiveValidation(family, env.arms, validation, config)
        return DummyVecEnv([lambda: Monitor(env)]), env.features, Tally([arm.name for arm in env.arms]), measured

    def _initial_policy(self, features: list[str], arms: list[str]) -> "NetworkPolicy | None":
        from dispatch_rl.policies.network import NetworkPolicy
        from dispatch_rl.runs import RunFolder

        if self.config.init is None:
            return None
        other = RunFolder.open(self.config.init)
        other.check_interface(features, arms)
        path = other.best_policy
        policy = NetworkPolicy.load(path)
        if policy.widths != tuple(self.config.net_arch):
            raise UserError(f"{self.config.algorithm}.net_arch: {self.config.net_arch} is not that of {path}, {list(policy.widths)}")
        return policy

    def _learn(
        self,
        env: "VecEnv",
        features: "tuple[Feature, ...]",
        tally: "Tally",
        validate: "Validation",
        initial: "NetworkPolicy | None",
        tracking: "Tracking",
    ) -> "NetworkPolicy":
        """Let the learner learn and return the policy that was fastest on the validation prompts."""
        from dispatch_rl.envs.replay_vector import ReplayVecEnv
        from dispatch_rl.policies.network import NetworkPolicy
        from dispatch_rl.progress import progress_bar
        from dispatch_rl.selection import Selection
        from dispatch_rl.teaching import learn_by_sampling, learn_on_replay

        selection = Selection(self.folder, tracking, validate)
        with progress_bar("learning", self.config.total_steps) as update:
            if isinstance(env, ReplayVecEnv):
                learn_on_replay(self.config, env.env.world, selection, update, initial, env.env)
            else:
                learn_by_sampling(env, features, tally, self.config, selection, initial, update)
        tracking.summarise(selection.best)
        return NetworkPolicy.load(self.folder.best_policy)


if __name__ == "__main__":
    cli.run(main)
