"""Benchmarks: ``python -m dispatch_rl.bench NAME``. Correctness comes first; while it is red, no speed is printed."""

from collections.abc import Sequence
from importlib import import_module

from dispatch_rl.errors import UserError

BENCHMARKS = {
    "decode": "fixed student against transformers' assisted generation; or latencies of a family with random weights",
    "endurance": "many texts in one process: memory and failures",
    "replay": "steps per second in replay, and PPO on it against PPO on an environment that does nothing",
    "kernels": "the kernels against torch, torch.compile and the memory's bandwidth; needs a GPU",
}


def main(argv: Sequence[str]) -> None:
    """Run a benchmark by name."""
    name = argv[0] if argv else ""
    if name in ("--help", "-h"):
        lines = [f"{known:<10} {meaning}" for known, meaning in BENCHMARKS.items()]
        print("\n".join(["usage: python -m dispatch_rl.bench NAME [--help]", "", *lines]))
        return
    if name not in BENCHMARKS:
        what = f"there is no benchmark '{name}'; there are" if name else "name a benchmark:"
        raise UserError(f"bench: {what} {', '.join(BENCHMARKS)}")
    import_module(f"dispatch_rl.bench.{name}").main(argv[1:])
