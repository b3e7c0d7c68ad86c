"""The model card of a run: what was trained, on what, how well it does, and how to use, export and resume it."""

from typing import Any

from dispatch_rl import __version__
from dispatch_rl.config import TrainConfig
from dispatch_rl.runs import RunFolder, read_json, write_atomically

_CARD = """\
# Run `{name}`: a dispatcher for speculative decoding

Chooses, before every round, who drafts and how far. The text is the target's own, whatever is chosen.

**Trained.** {training} {validated}

**Family**: {family}.

**Arms**: {arms}.

**Texts**: {texts}.

## Measured on held-out texts

{evaluation}

All rows are in `evaluation.json`, figures in `report.html` and `performance_metrics.png`.

## Use

```sh
{commands}
```

## Files

| file | holds |
|---|---|
| `best/policy.safetensors` | the policy that was fastest on the validation prompts; `checkpoints/` has the others |
| `best/validation.json` | what validation said about it, and the arm if it is a fixed one |
| `config.yaml`, `command.txt`, `environment.json` | the whole configuration, the command, versions and device |
| `interface.json` | what the policy sees, and what it chooses from |
| `metrics.jsonl`, `tensorboard/` | the training as it went |
| `state/` | what `--resume` goes on from, until there is `finished.txt` |

Nothing here is a pickle. Made with {versions}.{tracked}
"""


def write_card(run: RunFolder, config: TrainConfig) -> None:
    """Write ``README.md`` from what is in the folder of a run by now."""
    from dispatch_rl.comparison import ORACLE, TARGET_ALONE
    from dispatch_rl.contestants import BEST_FIXED, LEARNED, THRESHOLD, TUNED
    from dispatch_rl.export import training_summary
    from dispatch_rl.runtime.card import evaluation_table, training_sentence

    told = (LEARNED, TARGET_ALONE, THRESHOLD, TUNED, BEST_FIXED, ORACLE)
    rows = [row for row in read_json(run.evaluation, []) if row["policy"] in told]
    summary = training_summary(run, config)
    best = summary["validation_latency_ms_per_token"]
    versions = {"dispatch-rl": __version__, **read_json(run.path / "environment.json", {})}
    text = _CARD.format(
        name=config.name,
        training=training_sentence(summary) if summary["rounds"] else "Nothing yet.",
        validated="" if best is None else f"The best policy took {best:.3f} ms per token on the validation prompts.",
        family=_family(config),
        arms=", ".join(f"`{arm}`" for arm in read_json(run.interface, {"arms": []})["arms"]),
        texts=_texts(config),
        evaluation=evaluation_table(rows),
        commands=_commands(run, config),
        versions=", ".join(f"{name} {version}" for name, version in versions.items() if name not in ("device", "machine")),
        tracked=_tracked(run),
    )
    write_atomically(run.card, text)


def _family(config: TrainConfig) -> str:
    if config.from_elsewhere:
        return f"that of the recording `{config.replay.traces}`"
    students = ", ".join(f"`{name}` (`{source.path}`)" for name, source in config.family.students.items())
    return f"target `{config.family.target.path}`; students {students}; {config.family.dtype}"


def _texts(config: TrainConfig) -> str:
    if config.from_elsewhere:
        return f"those of the recording `{config.replay.traces}`, sampled as it was made"
    method = "greedy" if config.sampling.greedy else config.sampling.method
    return f"up to {config.prompts.max_new_tokens} tokens, temperature {config.sampling.temperature}, {method}"


def _commands(run: RunFolder, config: TrainConfig) -> str:
    if not run.finished:
        return f"python -m dispatch_rl.train --resume {run.path}  # the training is not finished: it goes on"
    lines = [f"python -m dispatch_rl.evaluate {run.path}"]
    if not config.from_elsewhere:
        lines += [
            f"python -m dispatch_rl.export {run.path} --output bundle",
            'python -m dispatch_rl.generate --bundle bundle --prompt "..."',
        ]
    lines.append(f"python -m dispatch_rl.compare {run.path} runs/ANOTHER")
    if not config.live and not config.from_elsewhere:
        learner = "" if config.algorithm == "ppo" else f" --algo ppo --ppo.net_arch '{config.net_arch}'"
        learner += "" if config.ppo.total_steps is None else " --ppo.total_steps null"
        fine_tune = f"python -m dispatch_rl.train --config {run.config} --env live --init {run.path} --name tuned{learner}"
        lines.append(f"{fine_tune}  # on real decoding")
    return "\n".join(lines)


def _tracked(run: RunFolder) -> str:
    kept: dict[str, Any] = read_json(run.tracking, {}).get("wandb", {})
    return f" Followed in W&B as `{kept['project']}/{kept['id']}`." if kept else ""
