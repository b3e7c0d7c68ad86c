"""An exported policy against the best that transformers itself offers with the same models."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dispatch_rl.bench.measuring import DEFAULT_CONFIDENCE, DEFAULT_LENGTH, Decoder, greedy, measure, rows_of, transformers_decoder
from dispatch_rl.config import PromptConfig
from dispatch_rl.decoding.families import Family
from dispatch_rl.progress import progress_bar
from dispatch_rl.prompts import prompts
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from dispatch_rl.utilisation import watch_gpu

_DEFAULT_LOOKUP = 10
"""Prompt lookup has no default length; transformers' documentation uses 10."""


def transformers_options(family: Family, lengths: Sequence[int], max_new_tokens: int) -> dict[str, Decoder]:
    """Return what transformers offers: every student and prompt lookup, as they come and with each of ``lengths``."""
    options: dict[str, Decoder] = {}
    for student in family.students:
        options[f"{student}, as it comes"] = transformers_decoder(family, student, DEFAULT_LENGTH, max_new_tokens, DEFAULT_CONFIDENCE)
        for length in lengths:
            options[f"{student}-{length}"] = transformers_decoder(family, student, length, max_new_tokens)
            options[f"{student}-{length} while sure"] = transformers_decoder(family, student, length, max_new_tokens, DEFAULT_CONFIDENCE)
    for length in sorted({*lengths, _DEFAULT_LOOKUP}):
        options[f"lookup-{length}"] = _lookup_decoder(family, length, max_new_tokens)
    return options


def _lookup_decoder(family: Family, length: int, max_new_tokens: int) -> Decoder:
    return lambda prompt: greedy(family, prompt, max_new_tokens, prompt_lookup_num_tokens=length)


def bench_bundle(
    bundle: Path, family: Family, config: PromptConfig, num_tuning_prompts: int, num_prompts: int, seed: int
) -> list[dict[str, Any]]:
    """Choose the best of transformers' options on validation prompts, and measure it and the policy on held-out ones.

    Args:
        bundle: Folder of the exported policy.
        family: The models.
        config: What is decoded.
        num_tuning_prompts: Validation prompts.
        num_prompts: Held-out prompts.
        seed: Of the prompts, of the order and of the bootstrap.

    Raises:
        UserError: The bundle does not fit the family, or two decoders disagree about a token, and not at a near tie.
    """
    longest = config.max_new_tokens
    decoder = AdaptiveDecoder.from_bundle(bundle, family)
    decoder.warm_up()
    lengths = sorted({arm.length for arm in decoder.arms if arm.length})
    options = transformers_options(family, lengths, longest)
    validation = list(islice(prompts(config, family, "validation", seed), num_tuning_prompts))
    totals = {}
    with progress_bar("transformers' options", len(options)) as update:
        for done, (name, option) in enumerate(options.items()):
            alone = measure({name: option}, validation, seed, family)
            totals[name] = sum(alone.times_ms[name]) / sum(alone.counts)
            update(done + 1)
    best = min(totals, key=lambda name: totals[name])
    for name, latency_ms in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"validation: transformers, {name:<24} {latency_ms:8.3f} ms/token")
    ours = f"dispatch-rl, {bundle.name}"
    decoders: dict[str, Decoder] = {
        ours: lambda prompt: list(decoder.generate(prompt, longest).tokens),
        f"transformers, {best}": options[best],
    }
    chosen = list(islice(prompts(config, family, "test", seed), num_prompts))
    with watch_gpu(family.device) as watch:
        measured = measure(decoders, chosen, seed, family, watch)
    return rows_of(measured, seed, family.device_name(), watch)
