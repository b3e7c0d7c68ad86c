"""Recordings that others made: the forms that lists come in, files that change, parts that differ, and policies that meet other columns."""

import os
from dataclasses import replace
from pathlib import Path
from random import Random

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dispatch_rl import evaluate, train
from dispatch_rl.config import PolicyIterationConfig, ReplayConfig, TrainConfig
from dispatch_rl.decoding.arms import NONE, Arm
from dispatch_rl.errors import UserError
from dispatch_rl.iteration import PolicyIteration
from dispatch_rl.replay.caps import doubts
from dispatch_rl.replay.hindsight import Hindsight
from dispatch_rl.replay.profile import TARGET, ForwardLatency, Profile
from dispatch_rl.replay.sources import open_replay
from dispatch_rl.replay.traces import load_traces
from tests.traces import Row, constant, made_up_profile, made_up_world, random_rows, write_traces

COUNTS = [[2, 1, 0, 1], [0, 3, 2, 1]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(path: Path, **columns: pa.Array | pa.ChunkedArray) -> Path:
    """Write columns as they are."""
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(number) for number in (pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64())),
        pa.large_list(pa.int32()),
        pa.list_(pa.int8(), 4),
    ],
    ids=str,
)
def test_counts_may_be_of_any_whole_type(tmp_path: Path, kind: pa.DataType) -> None:
    """Lists of any width, of one length or of many, in any number of chunks, hold the same numbers."""
    column = pa.chunked_array([pa.array([COUNTS[0]], kind), pa.array([COUNTS[1]], kind)])
    traces = load_traces(parquet(tmp_path / "mine.parquet", accepted_a=column))
    assert traces.accepted["a"].tolist() == [*COUNTS[0], *COUNTS[1]]
    assert traces.offsets.tolist() == [0, 4, 8]


@pytest.mark.parametrize("inner", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int8()), pa.list_(pa.null())], ids=str)
@pytest.mark.parametrize("outer", [pa.list_, pa.large_list])
def test_what_lies_beyond_may_be_of_any_type(tmp_path: Path, outer: type, inner: pa.DataType) -> None:
    """Lists of lists come in the same forms; of a student that is always right, every inner one is empty."""
    values = [[[], [], [], []]] if inner.value_type == pa.null() else [[[3, 2], [], [1], []]]
    beyond = pa.array(values, outer(inner))
    path = parquet(tmp_path / "mine.parquet", accepted_a=pa.array(COUNTS[:1]), beyond_margin_a=beyond, beyond_entropy_a=beyond)
    found = load_traces(path).beyond["beyond_margin_a"]
    assert found.values.tolist() == [value for each in values[0] for value in each]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"match_a": [1, -1, 0]}], "the column 'match_a' holds -1, which is neither 1 (true) nor 0 (false)"),
        ([{"match_a": [1, 3, 0]}], "the column 'match_a' holds 3, which is neither"),
        ([{"accepted_a": [1, 0], "entropy": [0.5, float("inf")]}], "the column 'entropy' holds infinity"),
        ([{"accepted_a": [1, 0], "prompt": [7, 7], "limit": 3}], "the column 'limit' holds 3 for a text of 4 tokens, prompt included"),
        ([{"accepted_a": [1, 0], "limit": -5}], "the column 'limit' holds -5 for a text of 2 tokens"),
        ([{"accepted_target": [1, 0]}], "a student cannot be called 'target'; rename its columns"),
        ([{"accepted_": [1, 0]}], "a student cannot be called ''; rename its columns"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(tmp_path: Path, rows: list[Row], message: str) -> None:
    """The line names the recording, the column and the number."""
    path = write_traces(tmp_path / "mine.parquet", rows)
    with pytest.raises(UserError) as caught:
        load_traces(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("change", ['"students": ["target"]', '"students": ["a"], "max_draft_length": 256'])
def test_a_description_that_nothing_could_have_is_refused(tmp_path: Path, change: str) -> None:
    """Students with the names of something else, and drafts longer than are counted."""
    write_traces(tmp_path / "mine", [{"match_a": [True]}], {"students": ["a"], "num_prompts": 1, "shard_size": 1})
    path = tmp_path / "mine" / "traces.json"
    path.write_text(path.read_text().replace('"students": ["a"]', change))
    with pytest.raises(UserError, match="not the description of a recording: "):
        load_traces(tmp_path / "mine")


@pytest.mark.parametrize("form", [".parquet", ".jsonl"])
def test_a_file_is_read_as_it_is_now(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced by one of the same time and size, it is read anew; a relative name may look like a pattern."""
    path = write_traces(tmp_path / f"mine{form}", [{"accepted_a": [1, 0]}])
    assert load_traces(path).accepted["a"].tolist() == [1, 0]
    before = path.stat()
    write_traces(path, [{"accepted_a": [3, 2]}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_traces(path).accepted["a"].tolist() == [3, 2]
    odd = tmp_path / "br[1]"
    write_traces(odd / f"mine{form}", [{"accepted_a": [4, 3]}])
    monkeypatch.chdir(odd)
    assert load_traces(Path(f"mine{form}")).accepted["a"].tolist() == [4, 3]


def test_types_are_found_out_from_the_whole_file(tmp_path: Path) -> None:
    """A column that is null for the first ten megabytes, and whole numbers that become fractions after them, are read."""
    rows: list[Row] = [{"accepted_a": [1] * 4000 + [0], "kind": None, "temperature": 0}] * 1000
    rows += [{"accepted_a": [0], "kind": "code", "temperature": 0.6}]
    path = write_traces(tmp_path / "mine.jsonl", rows)
    assert path.stat().st_size > 10 << 20
    assert load_traces(path).num_texts == 1001


def test_columns_that_nobody_asked_for_are_left_alone(tmp_path: Path) -> None:
    """Whatever type they have."""
    notes = pa.array([[("who", 1)]], pa.map_(pa.string(), pa.int64()))
    assert load_traces(parquet(tmp_path / "mine.parquet", accepted_a=pa.array(COUNTS[:1]), notes=notes)).num_texts == 1


def test_folders_that_hold_no_recording_say_what_they_hold(tmp_path: Path) -> None:
    """A folder of files, and an empty one."""
    (tmp_path / "empty").mkdir()
    write_traces(tmp_path / "files" / "one.parquet", [{"accepted_a": [0]}])
    for name, holds in (("empty", "nothing"), ("files", "one.parquet")):
        with pytest.raises(UserError, match=f"has finished this folder; it holds {holds}$"):
            load_traces(tmp_path / name)


def test_where_a_text_stands_does_not_tell_its_end(tmp_path: Path) -> None:
    """Without limits, the third token of a short text looks like that of a long one; with limits, each has its own."""
    rows: list[Row] = [{"accepted_a": [0] * length, "prompt": [1, 2]} for length in (4, 100)]
    for given, alike in ((rows, True), ([{**row, "limit": 2 + len(row["accepted_a"])} for row in rows], False)):
        world = made_up_world(tmp_path / f"{alike}.parquet", given, [Arm("a", 1), Arm(NONE)], made_up_profile(a=1))
        place = [feature.name for feature in world.features].index("position")
        first, second = (world.static[world.traces.offsets[text] + text + 3, place] for text in (0, 1))
        assert (first == second) == alike


def test_counts_that_were_cut_are_doubted(tmp_path: Path) -> None:
    """Four at most, at one position after the other, is a limit of the recorder; where runs end by themselves, or are none, it is not."""
    runs = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    rows: list[Row] = [
        {"accepted_cut": [min(n, 4) for n in runs], "accepted_bad": [min(n, 4) if n < 5 else 0 for n in runs], "accepted_never": [0] * 10}
    ] * 10
    write_traces(tmp_path / "t.jsonl", rows)
    traces = load_traces(tmp_path / "t.jsonl")
    arms = [Arm("cut", 4), Arm("cut", 6), Arm("cut", 8), Arm("bad", 8), Arm("never", 4), Arm(NONE)]
    (line,) = doubts(traces, arms)
    assert "at most 4 tokens of 'cut'" in line
    assert "cut-6, cut-8 would be faster" in line
    assert not list(doubts(traces, [Arm("cut", 4), Arm("bad", 8)]))


def test_who_reads_along_is_judged_by_a_first_token(tmp_path: Path) -> None:
    """A drafter whose further tokens are free is not free; contexts far beyond all texts cost no memory."""
    target = ForwardLatency((1,), (1, 10**12), ((20.0, 20.0),))
    once = ForwardLatency((1,), (1,), ((1.5,),), next_ms=(0.0,))
    traces = load_traces(write_traces(tmp_path / "mine.parquet", [{"accepted_a": [1, 0], "accepted_b": [0, 0]}]))
    profile = Profile("made up", "float32", {TARGET: target, "a": once, "b": constant(0.1)})
    assert Hindsight(traces, profile, {"a", "b"}, 0.01).along.tolist() == [1]


def test_many_who_are_nearly_free_are_not_free_together(tmp_path: Path) -> None:
    """The cheapest read along, as many as together take no more than one may."""
    rows: list[Row] = [{f"accepted_{name}": [1, 0] for name in "abcd"}]
    traces = load_traces(write_traces(tmp_path / "mine.parquet", rows))
    profile = made_up_profile(target_ms=10.0, a=0.06, b=0.05, c=0.04, d=0.0)
    assert Hindsight(traces, profile, set("abcd"), 0.01).along.tolist() == [1, 2, 3]
    assert Hindsight(traces, profile, set("abcd"), 0.0).along.tolist() == []


def configured(traces: Path, profile: Path | None, **options: object) -> TrainConfig:
    """Return the configuration of a training on somebody's traces."""
    return TrainConfig(replay=ReplayConfig(traces=traces, profile=profile), **options)  # type: ignore[arg-type]


def test_parts_may_differ_in_what_chance_decides(tmp_path: Path) -> None:
    """Students in another order, and drafts that were never accepted so far in a small part, are those of the training texts."""
    for part, row in (("train", {"accepted_a": [8, 0], "accepted_b": [1, 0]}), ("test", {"accepted_b": [2, 0], "accepted_a": [1, 0]})):
        write_traces(tmp_path / "mine" / part, [row])
    profile = tmp_path / "profile.json"
    made_up_profile(a=1, b=2).write(profile)
    source = open_replay(configured(tmp_path / "mine", profile, arms=[Arm("a", 8), Arm("b", 2), Arm(NONE)]), None)
    worlds = [source.world(part) for part in ("train", "test")]
    assert [world.traces.students for world in worlds] == [("a", "b")] * 2
    assert [world.traces.accepted["a"].tolist() for world in worlds] == [[8, 0], [1, 0]]
    assert worlds[0].features == worlds[1].features


def test_traces_from_elsewhere_need_latencies_from_there(tmp_path: Path) -> None:
    """Nobody measures, or finds, a pocket family's latencies for students that happen to be called small and large."""
    path = write_traces(tmp_path / "mine.parquet", [{"accepted_small": [1, 0]}] * 20)
    with pytest.raises(UserError, match=r"^replay.profile: .*mine.parquet does not tell which models"):
        _ = open_replay(configured(path, None), None).profile


def test_arms_that_nobody_named_are_those_that_are_known_of(tmp_path: Path) -> None:
    """Of every drafter the lengths up to its largest count, and to the longest verification that has a latency, unless one is given."""
    rows: list[Row] = [{"accepted_a": [20, 0], "accepted_b": [3, 0], "accepted_c": [0, 0]}] * 20
    path, profile = write_traces(tmp_path / "mine.parquet", rows), tmp_path / "profile.json"
    latencies = made_up_profile(a=1, b=1, c=1)

    def lengths(**options: object) -> dict[str, list[int]]:
        source = open_replay(configured(path, profile, **options))
        assert list(source.world("test").arms) == list(source.world("train").arms) == source.arms
        assert source.arms[-1] == Arm(NONE)
        return {name: [arm.length for arm in source.arms if arm.student == name] for name in "abc"}

    latencies.write(profile)
    assert lengths() == {"a": [4, 1, 2, 3, 6, 8, 12, 16], "b": [3, 1, 2], "c": [1]}
    assert lengths(draft_length=2) == {"a": [2], "b": [2], "c": [2]}
    assert lengths(arms=[Arm("b", 7), Arm(NONE)]) == {"a": [], "b": [7], "c": []}
    for longest, of_a in ((8, [4, 1, 2, 3, 6, 7]), (2, [4, 1, 2, 3])):
        target = ForwardLatency((1, longest), (1,), ((10.0,), (11.0,)))
        replace(latencies, models={**latencies.models, TARGET: target}).write(profile)
        assert lengths() == {"a": of_a, "b": [3, 1, 2], "c": [1]}


def test_latencies_may_come_from_another_machine(tmp_path: Path) -> None:
    """Where nothing is decoded here, a profile that the project measured elsewhere is taken as it is."""
    path, profile = write_traces(tmp_path / "mine.parquet", [{"accepted_a": [1, 0]}] * 20), tmp_path / "profile.json"
    replace(made_up_profile(a=1), device="A100", dtype="bfloat16", family="theirs").write(profile)
    assert open_replay(configured(path, profile), None).profile.device == "A100"


def test_a_profile_of_a_target_that_takes_no_time_is_refused(tmp_path: Path) -> None:
    """Nothing could be compared with it; a target that is free for short texts only may be right."""
    rows: list[Row] = [{"accepted_a": [1, 0, 1]}]
    free = ForwardLatency((1,), (100, 1000), ((0.0, 100.0),))
    with pytest.raises(UserError, match=r"^replay.profile: the target takes 0 ms at every length of these texts"):
        made_up_world(tmp_path / "a.parquet", rows, [Arm(NONE)], Profile("made up", "float32", {TARGET: free, "a": constant(1)}))
    long: list[Row] = [{"accepted_a": [1, 0] * 100}]
    made_up_world(tmp_path / "b.parquet", long, [Arm(NONE)], Profile("made up", "float32", {TARGET: free, "a": constant(1)}))


def test_policy_iteration_of_hardly_any_states(tmp_path: Path) -> None:
    """Where chance takes no state at all, the beginning of a text is one."""
    world = made_up_world(tmp_path / "mine.parquet", random_rows(Random(3), 20), [Arm("a", 2), Arm(NONE)], made_up_profile(a=1, b=2))
    for seed in range(24):
        assert len(PolicyIteration(world, PolicyIterationConfig(states=1, n_epochs=1), seed).step().observations) >= 1


def trained(tmp_path: Path, *options: str) -> list[str]:
    """Return the arguments of a tiny training on traces of two students in ``tmp_path``."""
    rows = [{"accepted_ngram": row["accepted_a"], "accepted_eagle": row["accepted_b"]} for row in _counted(40)]
    write_traces(tmp_path / "mine.parquet", rows)
    made_up_profile(ngram=5, eagle=1).write(tmp_path / "profile.json")
    replay = [f"--replay.traces={tmp_path}/mine.parquet", f"--replay.profile={tmp_path}/profile.json"]
    learner = ["--algo=policy_iteration", "--policy_iteration.iterations=1", "--policy_iteration.states=32", "--evaluation.prompts=0"]
    return [f"--runs={tmp_path}/runs", "--name=x", *replay, *learner, *options]


def _counted(texts: int) -> list[Row]:
    rng = np.random.default_rng(1)
    return [{f"accepted_{name}": rng.integers(0, 3, 12).tolist() for name in "ab"} for _ in range(texts)]


def test_a_policy_is_not_evaluated_with_other_columns(tmp_path: Path) -> None:
    """A file whose columns were put in another order would swap the drafters: that is said, and nothing is measured."""
    train.main(trained(tmp_path))
    evaluate.main([f"{tmp_path}/runs/x"])
    table = pq.read_table(tmp_path / "mine.parquet")
    pq.write_table(table.select(table.column_names[::-1]), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match="its policies were made for other features and arms"):
        evaluate.main([f"{tmp_path}/runs/x"])


def test_thresholds_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    """With entropies in the traces the threshold policy is compared, so what it lacks is said before anything is learned."""
    arguments = trained(tmp_path, "--threshold.limits=[0.1,0.2,0.3]")
    table = pq.read_table(tmp_path / "mine.parquet")
    entropy = pa.array([[0.5] * 12] * table.num_rows)
    pq.write_table(table.append_column("entropy", entropy), tmp_path / "mine.parquet")
    with pytest.raises(UserError, match="threshold"):
        train.main(arguments)
    assert not (tmp_path / "runs" / "x" / "best").exists()
