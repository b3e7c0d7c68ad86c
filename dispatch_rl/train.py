"""Train a dispatcher on real decoding: ``python -m dispatch_rl.train --config configs/pocket.yaml``."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig

if TYPE_CHECKING:
    from dispatch_rl.envs.live import LiveDecodingEnv
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.prompts import Prompt
    from dispatch_rl.runs import RunFolder

_DEFAULT_CONFIG = "pocket.yaml"


def main(argv: Sequence[str]) -> None:
    """Learn, keep the best policy, and compare it with the baselines."""
    parser = cli.make_parser(TrainConfig, "train", "Train a dispatcher with PPO on real decoding and compare it with the baselines.")
    namespace = cli.parse(parser, argv)
    config = cli.build(TrainConfig, parser, namespace)
    check(config)

    from dispatch_rl.runs import RunFolder

    run = RunFolder.claim(config.runs / config.name, overwrite=config.overwrite)

    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.envs.live import LiveDecodingEnv
    from dispatch_rl.evaluate import evaluate_run
    from dispatch_rl.prompts import prompts

    family = load_family(config.family)
    env = LiveDecodingEnv(config, family=family)
    validation = list(islice(prompts(config.prompts, family, "validation", config.seed), config.validation_prompts))
    run.begin(parser.dump(namespace), family.device_name())
    print(f"{family.describe()}; target alone {env.reward.reference_ms_per_token:.2f} ms per token")
    learned = learn(run, config, env, validation)
    evaluate_run(run, config, family, learned, config.evaluation.prompts, config.evaluation.seed)


def check(config: TrainConfig) -> None:
    """Refuse what cannot work, before anything is loaded or written.

    Raises:
        UserError: Naming the key.
    """
    from dispatch_rl.decoding.arms import ArmTable
    from dispatch_rl.evaluate import policies

    ArmTable(config.arm_list()).check_students(tuple(config.family.students))
    policies(config, None)


def learn(run: "RunFolder", config: TrainConfig, env: "LiveDecodingEnv", validation: "Sequence[Prompt]") -> "NetworkPolicy":
    """Run PPO and return the policy that was fastest on the ``validation`` prompts."""
    from dispatch_rl.decoding.loop import decode
    from dispatch_rl.learning import Recorder, build_ppo
    from dispatch_rl.policies.network import NetworkPolicy
    from dispatch_rl.progress import progress_bar

    def latency_ms(policy: NetworkPolicy) -> float:
        texts = [
            decode(env.family, policy, env.arms, p.tokens, p.sampling(config.sampling), config.prompts.max_new_tokens) for p in validation
        ]
        return sum(text.decoding_ms for text in texts) / sum(len(text.tokens) - 1 for text in texts)

    model = build_ppo(env, config.ppo, config.seed, run.path / "tensorboard")
    with progress_bar("learning", config.ppo.total_steps) as update:
        recorder = Recorder(run, env, latency_ms, config.validate_every, update)
        model.learn(config.ppo.total_steps, callback=recorder)
        recorder.validate_now()
    return NetworkPolicy.load(run.best_policy)


if __name__ == "__main__":
    cli.run(main)
