"""Recordings: what is read is what was written, wherever it comes from, and what is broken is one line."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pytest

from dispatch_rl.config import DecodingConfig, PromptConfig, RecordingConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import prompts
from dispatch_rl.replay.collector import record
from dispatch_rl.replay.columns import runs
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.replay.recording import Recording
from dispatch_rl.replay.traces import load_traces
from tests.traces import Row, made_up_profile, made_up_world, random_rows, write_traces

FORMS = ("", ".parquet", ".jsonl")
ROW: Row = {"accepted_a": [2, 1, 0, 1], "accepted_b": [0, 3, 9, 1]}
NAN = float("nan")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def told(path: Path, part: str | None = None) -> str:
    """Return what a user is told of a broken recording, which must be one line."""
    with pytest.raises(UserError) as caught:
        load_traces(path, part)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def recording(folder: Path, num_prompts: int = 7, **sampling: Any) -> Recording:
    """Return a recording of short prompts in shards of three."""
    source = folder / "prompts.txt"
    source.write_text("\n".join(f"Problem: {i} + {i * i} = " for i in range(20)))
    config = DecodingConfig(prompts=PromptConfig(source=str(source), max_new_tokens=24), sampling=Sampling(**sampling))
    return Recording(folder / "traces", config, RecordingConfig(shard_size=3, batch_size=2), "train", 0, num_prompts)


def test_a_recording_survives_its_folder(other: Family, tmp_path: Path) -> None:
    """Prompts, seeds, limits and students come back as they were; lists lie one behind the other, without a gap between texts."""
    made = recording(tmp_path, temperature=0.7, top_k=9, seed=2**64 - 2)
    record(other, made)
    traces = load_traces(made.folder)
    assert (traces.students, traces.num_texts, traces.first_position, traces.max_draft_length) == (("tiny", "twin"), 7, 1, 24)
    assert (traces.context_limits, traces.family) == ({"tiny": 128, "twin": 96}, family_fingerprint(other))
    assert traces.missing() == frozenset()
    for text, prompt in enumerate(islice(prompts(made.config.prompts, other, "train", 0), 7)):
        expected = (prompt.tokens, "prompts", prompt.sampling(made.config.sampling))
        assert (traces.prompt(text), traces.kind(text), traces.sampling(text)) == expected
        assert traces.limits[text] == len(prompt.tokens) + 24
        assert traces.prompt_lengths[text] == len(prompt.tokens)
    rows = traces.table.to_pylist()
    assert [row["prompt_id"] for row in rows] == [f"train-{i}" for i in range(7)]
    assert traces.lengths.tolist() == [len(row["path"]) for row in rows]
    assert [token for row in rows for token in row["path"]] == [t for i in range(7) for t in traces.path_tokens(i) or ()]
    for name, values in {**traces.floats, **traces.lookup}.items():
        np.testing.assert_array_equal(values, np.concatenate([row[name] for row in rows]), err_msg=name)


def test_runs_by_hand() -> None:
    """How many matches follow each other from here on; a run ends with its text, and at 255."""
    match = np.array([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
    assert runs(match, np.array([0, 5, 5, 8])).tolist() == [2, 1, 0, 2, 1, 1, 0, 1]
    assert runs(np.ones(300, dtype=bool), np.array([0, 300]))[[0, 44, 45, 46]].tolist() == [255, 255, 255, 254]
    assert runs(np.zeros(0, dtype=bool), np.array([0])).tolist() == []


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_accepted_tokens_are_enough(tmp_path: Path, form: str) -> None:
    """Two students, nothing else: their order is that of the columns, every token is a round's, and no draft is cut short."""
    world = made_up_world(tmp_path / f"mine{form}", [ROW, ROW], [Arm("b", 3), Arm("a", 1), Arm(NONE)], made_up_profile(a=1, b=2))
    traces = world.traces
    assert (traces.students, traces.first_position, traces.max_draft_length) == (("a", "b"), 0, 9)
    assert (traces.family, traces.path_tokens(0), traces.kind(0), traces.context_limits) == (None, None, "text", {})
    assert traces.offsets.tolist() == [0, 4, 8]
    assert traces.accepted["b"].tolist() == [0, 3, 9, 1] * 2
    text = np.array([1, 1, 1, 1])
    # From the third token on nine drafts are said to stand, of which the text has two left.
    drafted, accepted, emitted = world.outcomes(text, np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1]))[:3]
    assert (drafted.tolist(), accepted.tolist(), emitted.tolist()) == ([3, 3, 3, 1], [0, 3, 2, 1], [1, 3, 2, 1])


@pytest.mark.parametrize("form", FORMS)
def test_matches_become_runs(tmp_path: Path, form: str) -> None:
    """Matches may be true and false or 1 and 0, and are used rather than numbers of accepted tokens."""
    rows: list[Row] = [{"match_a": [True, True, False]}, {"match_a": [True, False, True]}]
    whole: list[Row] = [{"match_a": [int(match) for match in row["match_a"]], "accepted_a": [7, 7, 7]} for row in rows]
    for number, given in enumerate((rows, whole)):
        traces = load_traces(write_traces(tmp_path / f"{number}{form}", given))
        assert (traces.accepted["a"].tolist(), traces.max_draft_length) == ([2, 1, 0, 1, 0, 1], 255)


@pytest.mark.parametrize(
    ("left_out", "features_off"),
    [
        ([], set()),
        (["entropy"], {"entropy", "entropy_mean"}),
        (["margin", "lookup_match"], {"margin", "lookup_match"}),
        (["entropy", "top1_probability", "margin"], {"entropy", "entropy_mean", "top1_probability", "margin"}),
    ],
)
def test_what_was_not_recorded_is_no_feature(tmp_path: Path, left_out: list[str], features_off: set[str]) -> None:
    """A missing column turns off what comes from it; the other features stay in their order, and hindsight comes behind them."""
    rows = random_rows(Random(0), 3)
    arms, profile = [Arm("a", 2), Arm(NONE)], made_up_profile(a=1, b=2)
    every = [feature.name for feature in made_up_world(tmp_path / "all", rows, arms, profile).features]
    fewer = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    world = made_up_world(tmp_path / "fewer", fewer, arms, profile)
    hindsight = [f"right_{decay}_{student}" for student in "ab" for decay in (0.8, 0.95)] if left_out else []
    assert [feature.name for feature in world.features] == [*(name for name in every if name not in features_off), *hindsight]
    assert world.static.shape[1] == len(world.features)
    assert np.isfinite(world.static).all()


def test_parts_of_a_file_share_no_text(tmp_path: Path) -> None:
    """Of 25 texts in one file, 21, 2 and 2; together they are all of them. Nine texts have no tenth."""
    path = write_traces(tmp_path / "mine.parquet", [{"accepted_a": [0], "prompt": [i]} for i in range(25)])
    parts = {part: load_traces(path, part) for part in ("train", "validation", "test")}
    seen = {part: {traces.prompt(i)[0] for i in range(traces.num_texts)} for part, traces in parts.items()}
    assert {part: len(texts) for part, texts in seen.items()} == {"train": 21, "validation": 2, "test": 2}
    assert set.union(*seen.values()) == set(range(25))
    assert load_traces(path).num_texts == 25
    alike = write_traces(tmp_path / "alike.parquet", [{"accepted_a": [0], "prompt": [1], "prompt_id": None}] * 25)
    assert load_traces(alike, "test").num_texts == 2
    few = write_traces(tmp_path / "few", [ROW] * 9)
    assert told(few, "test") == f"{few}: the recording holds no test texts"


def test_parts_know_all_of_what_alternates(tmp_path: Path) -> None:
    """Sources that take turns, by two, by five or by ten, are in every part."""
    for period in (2, 5, 10):
        write_traces(path := tmp_path / f"{period}.parquet", [{"kind": str(i % period), "match_a": [True, False]} for i in range(400)])
        for part in ("train", "validation", "test"):
            traces = load_traces(path, part)
            assert {traces.kind(text) for text in range(traces.num_texts)} == {str(kind) for kind in range(period)}


@pytest.mark.parametrize("column", ["prompt_id", "prompt"])
def test_texts_of_one_prompt_stay_together(tmp_path: Path, column: str) -> None:
    """Five samples of each of forty prompts: four, four and thirty-two prompts, and no prompt in two parts."""
    names = [[i // 5, 7] if column == "prompt" else f"p{i // 5}" for i in range(200)]
    write_traces(tmp_path / "t.parquet", [{column: name, "match_a": [True, False]} for name in names])
    parts = [load_traces(tmp_path / "t.parquet", part).table.column(column).to_pylist() for part in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert [len({str(name) for name in part}) for part in parts] == [32, 4, 4]


def test_parts_of_a_folder_are_its_folders(tmp_path: Path) -> None:
    """A folder of that name is the part, whole."""
    for count, part in enumerate(("train", "test"), start=1):
        write_traces(tmp_path / part, [ROW] * count)
    assert [load_traces(tmp_path, part).num_texts for part in ("train", "test")] == [1, 2]
    assert told(tmp_path, "validation").endswith("it holds test, train")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "accepted_b": [1, 2, 3]}], "the lists of 'accepted_b' are not as long as those of the columns before it"),
        ([{**ROW, "entropy": [1.0]}], "the lists of 'entropy' are not as long as"),
        ([{**ROW, "accepted_b": [1, None, 3, 0]}], "the column 'accepted_b' has gaps"),
        ([ROW, {**ROW, "accepted_b": None}], "the column 'accepted_b' has gaps"),
        ([{"accepted_lookup": [1, 0]}], "a student cannot be called 'lookup', which is an arm of its own; rename its columns"),
        ([{**ROW, "margin": [1.0, 2.0, NAN, 1.0]}], "the column 'margin' holds NaN"),
        ([{**ROW, "accepted_b": [1, -1, 3, 0]}], "the column 'accepted_b' holds -1"),
        ([{**ROW, "accepted_b": [1, 0.5, 3, 0]}], "the column 'accepted_b' holds lists of double, not of whole numbers"),
        ([{**ROW, "entropy": ["low"] * 4}], "the column 'entropy' holds lists of string, not of numbers"),
        ([{"match_a": ["yes"]}], "the column 'match_a' holds lists of string, not of true and false"),
        ([{"accepted_a": 3}], "the column 'accepted_a' holds int64, not lists"),
        ([{**ROW, "prompt": [1]}, {**ROW, "prompt": None}], "the column 'prompt' has gaps"),
        ([{**ROW, "prompt": "Why?"}], "the column 'prompt' holds string, not lists"),
        ([{**ROW, "limit": 9}, {**ROW, "limit": None}], "the column 'limit' has gaps"),
        ([{**ROW, "limit": "9"}], "the column 'limit' holds string, not whole numbers"),
        ([{"path": [1]}], "no column is called match_STUDENT or accepted_STUDENT; there are path"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, form: str, rows: list[Row], message: str) -> None:
    """The line names the recording and the column."""
    path = write_traces(tmp_path / f"mine{form}", rows)
    assert told(path).startswith(f"{path}: {message}")


def test_the_name_of_a_file_is_no_pattern(tmp_path: Path) -> None:
    """``mine[1].jsonl`` is not ``mine1.jsonl``."""
    for form in (".jsonl", ".parquet"):
        write_traces(tmp_path / f"mine1{form}", [ROW] * 3)
        assert load_traces(write_traces(tmp_path / f"mine[1]{form}", [ROW])).num_texts == 1


def test_files_that_are_no_recording_are_refused(tmp_path: Path) -> None:
    """Missing, of another kind, empty, cut off, or several at once."""
    assert told(tmp_path / "none") == f"traces: there is no recording {tmp_path}/none"
    (tmp_path / "mine.csv").touch()
    assert told(tmp_path / "mine.csv") == f"traces: {tmp_path}/mine.csv is neither a folder nor a .parquet, .jsonl, .json file"
    (tmp_path / "empty.jsonl").touch()
    assert told(tmp_path / "empty.jsonl") == f"{tmp_path}/empty.jsonl: the recording holds no texts"
    datasets.Dataset.from_dict({"accepted_a": []}).save_to_disk(str(tmp_path / "empty"))
    assert told(tmp_path / "empty") == f"{tmp_path}/empty: the recording holds no texts"
    for form in (".parquet", ".jsonl"):
        path = write_traces(tmp_path / f"cut{form}", [ROW] * 9)
        path.write_bytes(path.read_bytes()[:-20])
        assert told(path).startswith(f"{path}: the recording is damaged or cut off: ")
    datasets.DatasetDict({"mine": datasets.Dataset.from_list([ROW])}).save_to_disk(str(tmp_path / "parts"))
    assert told(tmp_path / "parts") == f"{tmp_path}/parts: it holds the parts mine; name the folder of one of them"


def test_an_unfinished_recording_is_refused(other: Family, tmp_path: Path) -> None:
    """A shard that is not there yet, or not whole, is never taken for the end."""
    made = recording(tmp_path)
    record(other, made)
    assert load_traces(made.folder).num_texts == 7
    whole = (made.folder / "shard-00001" / "data-00000-of-00001.arrow").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9):
        (made.folder / "shard-00001" / "data-00000-of-00001.arrow").write_bytes(whole[: int(share * len(whole))])
        assert told(made.folder).startswith(f"{made.folder}/shard-00001: the recording ")
    shutil.rmtree(made.folder / "shard-00001")
    assert told(made.folder) == f"{made.folder}: 2 of 3 shards are there; run record again to finish it"
    shutil.copytree(made.folder / "shard-00002", made.folder / "shard-00001")
    assert told(made.folder) == f"{made.folder}: the shards hold 5 texts instead of 7"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "not the description of a recording: JSONDecodeError("),
        (lambda text: "[1, 2]", "not the description of a recording: "),
        (lambda text: text.replace('"students"', '"pupils"'), "not the description of a recording: KeyError('students')"),
        (lambda text: text.replace('["a"]', "[]"), "not the description of a recording: students is []"),
        (lambda text: text.replace('["a"]', '"a"'), "not the description of a recording: students is 'a'"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "written with schema 2; this version reads schema 1"),
        (lambda text: text.replace('"num_prompts": 1', '"num_prompts": "one"'), "not the description of a recording: num_prompts is 'one'"),
        (lambda text: text.replace('"shard_size": 1', '"shard_size": 0'), "not the description of a recording: shard_size is 0"),
    ],
)
def test_a_broken_description_is_refused(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    """Cut off, something else, incomplete, or of a version to come."""
    path = write_traces(tmp_path / "mine", [ROW], {"students": ["a"], "num_prompts": 1, "shard_size": 1}) / "traces.json"
    assert load_traces(tmp_path / "mine").num_texts == 1
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    assert told(tmp_path / "mine").startswith(f"{path}: {message}")


def test_arms_that_were_not_recorded_are_refused(tmp_path: Path) -> None:
    """Longer than any recorded draft, without the columns of prompt lookup, of an unknown student, or without a latency."""
    path = tmp_path / "mine"
    for arm, message in (
        (Arm("a", 3), f"arms: 'a-3' drafts 3 tokens; {path} knows of at most 2; lower draft_length or the arm's own"),
        (Arm(LOOKUP, 1), f"arms: 'lookup-1' needs prompt lookup, which {path} does not hold; leave it out"),
        (Arm("c", 1), f"arms: the recording {path} has no student 'c'; it has a"),
        (Arm("a", 2), "replay.profile: it has no model 'a'; there are target, b"),
    ):
        with pytest.raises(UserError) as caught:
            made_up_world(path, [{"accepted_a": [0, 2, 1]}], [arm], made_up_profile(b=1))
        assert str(caught.value) == message


def test_texts_without_a_decision_are_refused(tmp_path: Path) -> None:
    """If the prompt alone emits every text, there is nothing to replay."""
    rows: list[Row] = [{"accepted_a": [0]}, {"accepted_a": [0]}]
    with pytest.raises(UserError, match="no text is longer than 1 tokens, so there is nothing to decide"):
        made_up_world(tmp_path / "mine", rows, [Arm(NONE)], made_up_profile(), {"students": ["a"], "first_position": 1})
