"""Record traces for exact replay: ``python -m dispatch_rl.record --config configs/pocket.yaml --output traces/x``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dispatch_rl import cli
from dispatch_rl.config import TrainConfig
from dispatch_rl.errors import UserError

if TYPE_CHECKING:
    from dispatch_rl.replay.recording import Recording


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
    engine: Literal["local", "ray"] = "local"
    """local records in this process; ray in many, on this machine or on those of a Ray cluster that share a disk
    (pip install "ray[data]"). The files are the same to the byte, however the work was split."""
    num_actors: int | None = None
    """Processes of the ray engine, each with the models in its memory and as many threads as one local process; null means one for
    every GPU, or for every CPU where there is none."""
    gpus_per_actor: int = 1
    """GPUs of each actor where there are any; more for a family that is spread over several."""
    ray_address: str | None = None
    """Ray cluster, as HOST:PORT, or auto for the one that runs on this machine; null means RAY_ADDRESS, or else a Ray that is started
    here and ends with the recording."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_prompts is not None and self.num_prompts < 1:
            raise UserError(f"num_prompts: {self.num_prompts} is not at least 1")
        for key in ("num_actors", "gpus_per_actor"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise UserError(f"shard: {self.shard} is not in 0 ... num_shards - 1 = {self.num_shards - 1}")


def main(argv: Sequence[str]) -> None:
    """Record the parts one after the other; what is there already is kept."""
    description = "Record the target's texts and what every student would have made of them. Goes on where it was interrupted."
    parser = cli.make_parser(RecordConfig, "record", description)
    config = cli.build(RecordConfig, parser, cli.parse(parser, argv))
    if config.output is None:
        raise UserError("output: give the folder to write to, as --output traces/x")

    from dispatch_rl.replay.recording import check_sampling

    check_sampling(config.sampling)
    recordings = _recordings(config, config.output)
    written = _with_ray(config, recordings) if config.engine == "ray" else _in_this_process(config, recordings)
    for recording in written:
        _summarise(recording)


def _recordings(config: RecordConfig, output: Path) -> "list[Recording]":
    from dispatch_rl.prompts import Split
    from dispatch_rl.replay.sources import recording_of

    parts: list[Split] = ["train", "validation", "test"] if config.part is None else [config.part]
    recordings = [recording_of(config, part, output / part) for part in parts]
    return [replace(recording, num_prompts=config.num_prompts or recording.num_prompts) for recording in recordings]


def _in_this_process(config: RecordConfig, recordings: "list[Recording]") -> "Iterator[Recording]":
    """Yield each recording when this process's share of it is written."""
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.collector import record

    family = load_family(config.family)
    print(family.describe())
    for recording in recordings:
        with progress_bar(f"recording {recording.part}", recording.num_prompts) as update:
            record(family, recording, config.shard, config.num_shards, update)
        yield recording


def _with_ray(config: RecordConfig, recordings: "list[Recording]") -> "list[Recording]":
    """Return all recordings when this command's share of them is written."""
    from dispatch_rl.progress import progress_bar
    from dispatch_rl.replay.ray_engine import record_with_ray
    from dispatch_rl.replay.ray_session import Pool

    pool = Pool(config.num_actors, config.gpus_per_actor, config.ray_address)
    with progress_bar("recording", sum(recording.num_prompts for recording in recordings)) as update:
        record_with_ray(recordings, pool, config.shard, config.num_shards, update)
    return recordings


def _summarise(recording: "Recording") -> None:
    from dispatch_rl.replay.traces import load_traces

    if not recording.finished:
        print(f"{recording.folder}: this process's share is done; others are still at work")
        return
    traces = load_traces(recording.folder)
    rates = ", ".join(f"{name} {(traces.accepted[name] > 0).mean():.1%}" for name in traces.students)
    print(f"{recording.folder}: {traces.num_texts} texts, {traces.num_positions} tokens; tokens that match: {rates}")


if __name__ == "__main__":
    cli.run(main)
