"""Record traces for exact replay: ``python -m dispatch_rl.record --config configs/pocket.yaml --output traces/x``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError


@dataclass(frozen=True)
class RecordConfig(TrainConfig):
    """A recording; every key of a training run is understood, so that one file serves both."""

    output: Path | None = None
    """Folder to write to; each part gets a folder in it."""
    part: Literal["train", "validation", "test"] | None = None
    """Part of the prompts; null records all three."""
    num_prompts: int | None = None
    """Prompts per part; null takes recording.train_prompts and so on."""
    shard: int = 0
    """Which share of the shards this process writes, from 0."""
    num_shards: int = 1
    """Among how many processes the shards are shared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_prompts is not None and self.num_prompts < 1:
            raise UserError(f"num_prompts: {self.num_prompts} is not at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise UserError(f"shard: {self.shard} is not in 0 ... num_shards - 1 = {self.num_shards - 1}")


def main(argv: Sequence[str]) -> None:
    """Record the parts one after the other; what is there already is kept."""
    description = "Record the target's texts and what every student would have made of them. Goes on where it was interrupted."
    parser = cli.make_parser(RecordConfig, "record", description)
    config = cli.build(RecordConfig, parser, cli.parse(parser, argv))
    if config.output is None:
        raise UserError("output: give the folder to write to, as --output traces/x")

    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.prompts import Split
    from dispatch_rl.replay.recording import check_sampling, record
    from dispatch_rl.replay.sources import recording_of
    from dispatch_rl.replay.traces import load_traces

    check_sampling(config.sampling)
    family = load_family(config.family)
    print(family.describe())
    parts: list[Split] = ["train", "validation", "test"]
    for part in [config.part] if config.part else parts:
        recording = recording_of(config, part, config.output / part)
        recording = replace(recording, num_prompts=config.num_prompts or recording.num_prompts)
        with progress_bar(f"recording {part}", recording.num_prompts) as update:
            record(family, recording, config.shard, config.num_shards, update)
        if not recording.finished:
            print(f"{recording.folder}: this process's share is done; others are still at work")
            continue
        traces = load_traces(recording.folder)
        rates = ", ".join(f"{name} {(traces.accepted[name] > 0).mean():.1%}" for name in traces.students)
        print(f"{recording.folder}: {traces.num_texts} texts, {traces.num_positions} tokens; tokens that match: {rates}")


if __name__ == "__main__":
    cli.run(main)
