"""What the decoding benchmarks share: decoders that continue the same prompts in random order, and rows about them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dispatch_rl.errors import UserError
from dispatch_rl.utilisation import GpuWatch

if TYPE_CHECKING:
    from dispatch_rl.decoding.families import Family
    from dispatch_rl.prompts import Prompt

DEFAULT_LENGTH, DEFAULT_CONFIDENCE = 20, 0.4
"""What transformers drafts unless told otherwise: up to so many tokens, while the student is so sure of the last."""

Decoder = Callable[[Sequence[int]], list[int]]
"""From a prompt to its continuation."""


def transformers_decoder(family: "Family", student: str, draft_length: int, max_new_tokens: int, confidence: float = 0.0) -> Decoder:
    """Return the same by ``generate(assistant_model=...)``; above a ``confidence`` of 0 a draft ends where the student is less sure.

    The knobs are read from the assistant's own generation configuration; given to ``generate`` they are ignored.
    """
    assistant: Any = family.students[student].model

    def decode(prompt: Sequence[int]) -> list[int]:
        assistant.generation_config.num_assistant_tokens = draft_length
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = confidence
        return greedy(family, prompt, max_new_tokens, assistant_model=assistant)

    return decode


def greedy(family: "Family", prompt: Sequence[int], max_new_tokens: int, **options: Any) -> list[int]:
    """Return what ``generate`` writes greedily."""
    import torch

    ids, target = torch.tensor([list(prompt)], device=family.device), family.target.model
    with torch.inference_mode():
        output = target.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0, **options
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


class Measured(NamedTuple):
    """What decoders took for the same prompts."""

    times_ms: dict[str, list[float]]
    """Of each decoder, for as many tokens as the first of them emitted."""
    counts: list[int]
    """Tokens of each text."""
    parted: int
    """Texts about which they disagree, as they may where two tokens are nearly as likely."""


def measure(
    decoders: Mapping[str, Decoder], chosen: "Sequence[Prompt]", seed: int, family: "Family", watch: GpuWatch | None = None
) -> Measured:
    """Let every decoder continue every prompt, in random order, ``watch`` being told which of them is at work.

    Raises:
        UserError: Two of them disagree about a token between which the target of the ``family`` is not torn.
    """
    from dispatch_rl.decoding.parting import may_part
    from dispatch_rl.decoding.sampling import Sampling

    for decode in decoders.values():
        decode(chosen[0].tokens)
    rng = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in decoders}
    counts: list[int] = []
    parted = 0
    for prompt in chosen:
        texts = {}
        for name in rng.permutation(list(decoders)):
            with watch.during(name) if watch else nullcontext():
                began = perf_counter()
                texts[name] = decoders[name](prompt.tokens)
                times[name].append(1000 * (perf_counter() - began))
        first = texts[next(iter(decoders))]
        others = [text for text in texts.values() if text != first]
        if not all(may_part(family, prompt.tokens, first, text, Sampling()) for text in others):
            raise UserError(f"the decoders disagree on a {prompt.kind} prompt (number {prompt.seed}); no speed is reported")
        parted += bool(others)
        for name, text in texts.items():
            times[name][-1] *= len(first) / max(len(text), 1)
        counts.append(len(first))
    return Measured(times, counts, parted)


def rows_of(measured: Measured, seed: int, device: str, watch: GpuWatch | None = None) -> list[dict[str, Any]]:
    """Return a row for each decoder, with what a GPU was seen to do for it; the speed-up is over the last of them."""
    from dispatch_rl.statistics import ratio_of_sums

    tokens = np.array(measured.counts, dtype=float)
    theirs = np.array(list(measured.times_ms.values())[-1])
    rows = []
    for name, values in measured.times_ms.items():
        latency = ratio_of_sums(np.array(values), tokens, seed)
        gain = ratio_of_sums(theirs, np.array(values), seed)
        usage = None if watch is None else watch.usage(name)
        rows.append(
            {
                "policy": name,
                "mode": "live",
                "latency_ms_per_token": latency.value,
                "ci_low": latency.low,
                "ci_high": latency.high,
                "speedup": gain.value,
                "speedup_ci_low": gain.low,
                "speedup_ci_high": gain.high,
                "num_prompts": len(tokens),
                "num_emitted_tokens": int(tokens.sum()),
                "num_parted": measured.parted,
                "device": device,
                "seed": seed,
            }
            | ({} if usage is None else usage.row(int(tokens.sum())))
        )
    return rows
