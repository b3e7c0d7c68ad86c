"""The model card of a bundle: what it chooses from and reads, how it was made, what was measured, how to use it."""

from collections.abc import Mapping, Sequence
from typing import Any

from dispatch_rl.runtime.bundle import Bundle

_LEARNERS = {"ppo": "PPO", "dqn": "DQN", "qrdqn": "QR-DQN", "policy_iteration": "Policy iteration"}
_CARD = """\
# Dispatcher `{name}`: {policy}

Chooses, before every round of speculative decoding, who drafts and how far. The text is the target's own, whatever is chosen.

```python
from dispatch_rl import AdaptiveDecoder

decoder = AdaptiveDecoder.from_bundle("PATH OF THIS FOLDER")
print(decoder.generate("Your prompt", max_new_tokens=128, temperature={temperature}).text)
```

**Family** (fingerprint `{fingerprint}`, {dtype}): target `{target}`; students {students}. The policy is refused with any other.

**Arms**: {arms}.

**Trained with** temperature {temperature}, {method}. {training}

## Measured

{evaluation}

## Features

| feature | unit | range | divided by | meaning |
|---|---|---|--:|---|
{features}

Made with {versions}.
"""


def card_text(bundle: Bundle) -> str:
    """Return the card in Markdown."""
    students = ", ".join(f"`{name}` (`{source.path}`)" for name, source in bundle.family.students.items())
    rows = [f"| `{f.name}` | {f.unit} | {f.low:g} to {f.high:g} | {f.scale:g} | {f.meaning} |" for f in bundle.features]
    return _CARD.format(
        name=bundle.name,
        policy=bundle.policy_name,
        temperature=bundle.sampling.temperature,
        method="greedy" if bundle.sampling.greedy else bundle.sampling.method,
        fingerprint=bundle.fingerprint,
        dtype=bundle.family.dtype_of(bundle.family.target),
        target=bundle.family.target.path,
        students=students,
        arms=", ".join(f"`{arm.name}`" for arm in bundle.arms),
        training=training_sentence(bundle.training),
        evaluation=evaluation_table(bundle.evaluation),
        features="\n".join(rows),
        versions=", ".join(f"{name} {version}" for name, version in bundle.versions.items() if name not in ("device", "machine")),
    )


def training_sentence(training: Mapping[str, Any]) -> str:
    """Return how a policy was made, from :func:`dispatch_rl.export.training_summary`."""
    if not training:
        return "Nothing was learned."
    steps = "states" if training["algo"] == "policy_iteration" else "rounds"
    rounds = f"{training['rounds']:,} {steps} of {'real decoding' if training['env'] == 'live' else 'replay'}"
    made = f"{_LEARNERS[training['algo']]} on {rounds}, prompts `{training['prompts']}`, seed {training['seed']}."
    if training.get("always") is None:
        return made
    return f"{made} No policy was faster on the validation prompts than always `{training['always']}`, which was kept instead."


def evaluation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of an evaluation as a table in Markdown."""
    if not rows:
        return "Not yet: `python -m dispatch_rl.evaluate` measures a run."
    head = "| policy | mode | ms/token (95 % interval) | speed-up | device |\n|---|---|--:|--:|---|\n"
    return head + "\n".join(
        f"| {row['policy']} | {row['mode']} | {row['latency_ms_per_token']:.3f} ({row['ci_low']:.3f} - {row['ci_high']:.3f}) "
        f"| {row['speedup']:.2f} | {row['device']} |"
        for row in rows
    )
