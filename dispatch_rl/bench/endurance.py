"""Many texts in one process: does memory grow, does anything fail?"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dispatch_rl import cli
from dispatch_rl.config import PromptConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.runtime.decoder import AdaptiveDecoder

_SETTLED = 0.1
"""Share of the tokens after which memory is measured first: by then every buffer has been needed once."""


@dataclass(frozen=True)
class EnduranceConfig:
    """Decoding with an exported policy for a long time."""

    bundle: Path = Path("bundle")
    """Folder that dispatch_rl.export wrote."""
    tokens: int = 100_000
    """Tokens to write in all."""
    prompts: PromptConfig = PromptConfig(max_new_tokens=512)
    """What is continued."""
    temperature: float = 0.6
    """Of the sampling."""
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        if self.tokens < 1000:
            raise UserError(f"tokens: {self.tokens} is not at least 1000")


def resident_bytes() -> int:
    """Return how much memory this process holds.

    Raises:
        UserError: The system does not tell.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError as error:
        raise UserError("endurance: this system does not tell the memory of a process; it needs Linux") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def bench_endurance(config: EnduranceConfig, decoder: "AdaptiveDecoder") -> dict[str, Any]:
    """Write texts until there are enough tokens, and return memory and objects early and late."""
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.prompts import prompts

    written = texts = failures = 0
    before: tuple[int, int] | None = None
    began = perf_counter()
    with progress_bar("writing", config.tokens) as update:
        for prompt in prompts(config.prompts, decoder.family, "test", 0):
            text = decoder.generate(prompt.tokens, config.prompts.max_new_tokens, temperature=config.temperature, seed=prompt.seed)
            written, texts, failures = written + len(text.tokens), texts + 1, failures + (text.failure is not None)
            update(min(written, config.tokens))
            if before is None and written >= _SETTLED * config.tokens:
                before = _memory()
            if written >= config.tokens:
                break
    assert before is not None
    after = _memory()
    return {
        "num_texts": texts,
        "num_emitted_tokens": written,
        "num_failures": failures,
        "seconds": perf_counter() - began,
        "memory_before_mib": before[0] / 2**20,
        "memory_after_mib": after[0] / 2**20,
        "objects_before": before[1],
        "objects_after": after[1],
        "device": decoder.family.device_name(),
    }


def _memory() -> tuple[int, int]:
    gc.collect()
    return resident_bytes(), len(gc.get_objects())


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and print what it found."""
    parser = cli.make_parser(EnduranceConfig, "bench endurance", EnduranceConfig.__doc__ or "")
    config = cli.build(EnduranceConfig, parser, cli.parse(parser, argv))
    cli.check_file("json", config.json)

    from dispatch_rl.runtime.decoder import AdaptiveDecoder

    found = bench_endurance(config, AdaptiveDecoder.from_bundle(config.bundle))
    print(f"{found['num_texts']} texts, {found['num_emitted_tokens']} tokens in {found['seconds']:.0f} s; {found['device']}")
    print(f"failures of the dispatcher: {found['num_failures']}")
    for what, unit in (("memory", "_mib"), ("objects", "")):
        early, late = (found[f"{what}_{when}{unit}"] for when in ("before", "after"))
        print(f"{what:<8} {early:,.0f} after the first tenth, {late:,.0f} at the end{' (MiB)' if unit else ''}")
    if config.json is not None:
        from dispatch_rl.runs import write_json

        write_json(config.json, found)
