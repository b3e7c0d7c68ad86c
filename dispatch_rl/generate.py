"""Decode with an exported policy: ``python -m dispatch_rl.generate --bundle bundle --prompt "..."``."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dispatch_rl import cli
from dispatch_rl.config import FamilyConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.decoding.sampling import Sampling
    from dispatch_rl.runtime.decoder import AdaptiveDecoder
    from dispatch_rl.runtime.writer import Generated, Token


@dataclass(frozen=True)
class GenerateConfig:
    """A text to be written."""

    bundle: Path = Path("bundle")
    """Folder that dispatch_rl.export wrote."""
    prompt: str = "-"
    """Text to continue; a dash reads it from standard input."""
    chat: bool = False
    """Make the prompt a user's message in the target's chat format, which the target answers."""
    system: str | None = None
    """System message before it; needs chat."""
    family: FamilyConfig | None = None
    """The models; null looks where they were when the bundle was exported."""
    max_new_tokens: int = 256
    """Tokens to write at most."""
    temperature: float | None = None
    """Divides the logits, 0 is greedy; null takes temperature, top_k and top_p that the policy was trained with."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this probability."""
    seed: int = 0
    """Seed of the noise; the same seed gives the same text."""
    method: Literal["coupled", "rejection"] = "coupled"
    """coupled: the text depends on the target and the seed alone. rejection: it also depends on the drafts."""
    stop: list[str] | str = field(default_factory=list)
    """A string, or a list of several, before which the text ends."""
    show: bool = False
    """Colour tokens by who drafted them and show how it goes; on a terminal."""
    json: bool = False
    """Print one JSON object instead of the text: text, tokens, finish_reason, metrics."""

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise UserError("system: a system message needs --chat=true")


def sampling_of(config: GenerateConfig, trained: "Sampling") -> "Sampling":
    """Return how tokens are chosen.

    Raises:
        UserError: A value is out of range.
    """
    from dispatch_rl.decoding.sampling import Sampling

    if config.temperature is not None:
        return Sampling(config.temperature, config.top_k, config.top_p, config.seed, config.method)
    top_k = trained.top_k if config.top_k is None else config.top_k
    top_p = trained.top_p if config.top_p is None else config.top_p
    return Sampling(trained.temperature, top_k, top_p, config.seed, config.method)


def prompt_of(config: GenerateConfig) -> str:
    """Return the prompt.

    Raises:
        UserError: There is none.
    """
    if config.prompt != "-":
        return config.prompt
    if sys.stdin.isatty():
        raise UserError('prompt: give --prompt "..." or pipe a text in')
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"prompt: standard input is not {error.encoding}: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


def main(argv: Sequence[str]) -> None:
    """Print the text as it is written."""
    parser = cli.make_parser(GenerateConfig, "generate", "Continue a text with an exported policy; the text is printed as it is written.")
    config = cli.build(GenerateConfig, parser, cli.parse(parser, argv))
    text = prompt_of(config)

    from dispatch_rl.runtime.bundle import Bundle
    from dispatch_rl.runtime.decoder import AdaptiveDecoder

    sampling = sampling_of(config, Bundle.read(config.bundle).sampling)
    decoder = AdaptiveDecoder.from_bundle(config.bundle, config.family)
    prompt = decoder.family.encode_message(text, config.system) if config.chat else text
    decoder.capture_graphs([sampling])
    chosen: dict[str, Any] = {**asdict(sampling), "stop": config.stop}
    if config.json:
        generated = decoder.generate(prompt, config.max_new_tokens, **chosen)
        print(json.dumps({"prompt": text, **asdict(generated)}))
        return
    tokens = decoder.stream(prompt, config.max_new_tokens, **chosen)
    if config.show:
        _show(decoder, tokens)
    else:
        for token in tokens:
            print(token.text, end="", flush=True)
    print()
    assert decoder.last is not None
    print(summary(decoder.last), file=sys.stderr)


def _show(decoder: "AdaptiveDecoder", tokens: "Iterator[Token]") -> None:
    """Print the text in colours, if standard output is a terminal; without one there is nothing to colour."""
    from dispatch_rl.envs.rendering import colours
    from dispatch_rl.runtime.terminal import Progress, StatusLine, legend, painted

    screen = sys.stdout
    lively = screen.isatty() and "NO_COLOR" not in os.environ
    palette = colours(tuple(decoder.family.students)) if lively else {}
    if lively:
        print(legend(palette))
    progress, line = Progress(), None
    with StatusLine(screen) if lively else nullcontext() as status:
        for token in tokens:
            print(painted(token.text, palette.get(token.student or "")), end="", flush=True)
            if news := progress.line(token):
                line = news
                if status is not None:
                    status.show(news)
    if line is not None:
        print(f"\n{line}", end="", file=sys.stderr)


def summary(generated: "Generated") -> str:
    """Return in a line what a text took."""
    found = generated.metrics
    parts = [f"{len(generated.tokens)} tokens, ended by {generated.finish_reason}"]
    if found["num_rounds"]:
        parts.append(f"{found['mean_acceptance_length']:.2f} tokens a round")
        parts.append(f"{found['tokens_per_second']:.1f} tokens/s after {found['time_to_first_token_ms']:.0f} ms")
        shares = sorted(found["arm_shares"].items(), key=lambda item: -item[1])
        parts.append(" ".join(f"{arm} {share:.0%}" for arm, share in shares))
    return f"[{'; '.join(parts)}]"


if __name__ == "__main__":
    cli.run(main)
