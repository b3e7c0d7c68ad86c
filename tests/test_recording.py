"""Recording: interrupted, shared among processes or batched otherwise, the same rows; and one shard in memory at a time."""

import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from dispatch_rl.config import DecodingConfig, PromptConfig, RecordingConfig
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.decoding.session import DecodingSession
from dispatch_rl.errors import UserError
from dispatch_rl.prompts import Prompt, prompts
from dispatch_rl.record import main as record_command
from dispatch_rl.replay import collector, paths, recording
from dispatch_rl.replay.collector import record
from dispatch_rl.replay.recording import Recording, lookup_columns
from dispatch_rl.replay.traces import load_traces

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = RecordingConfig(shard_size=3, batch_size=2, max_draft_length=6)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` caches out of the home folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def to_record(folder: Path, settings: RecordingConfig = SETTINGS, sampling: Sampling | None = None, num_prompts: int = 11) -> Recording:
    """Return a recording of eleven short prompts in four shards."""
    source = folder.parent / "prompts.txt"
    if not source.exists():
        source.write_text("\n".join("Problem: " + "1 + 2 " * (i % 7) + f"= {i}" for i in range(30)))
    config = DecodingConfig(prompts=PromptConfig(source=str(source), max_new_tokens=20), sampling=sampling or Sampling(1.0, seed=2))
    return Recording(folder, config, settings, "train", 0, num_prompts)


def rows(made: Recording) -> list[dict[str, Any]]:
    """Return what is on the disk."""
    found: list[dict[str, Any]] = load_traces(made.folder).table.to_pylist()
    return found


def shards(made: Recording) -> dict[str, tuple[int, int]]:
    """Return when the file of every finished shard was written, and which it is."""
    stats = {path.parent.name: path.stat() for path in made.folder.glob("shard-?????/*.arrow")}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


@pytest.fixture(scope="module")
def whole(other: Family, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A recording that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        made = to_record(tmp_path_factory.mktemp("whole") / "traces")
        record(other, made)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def beside(whole: Recording, name: str) -> Recording:
    """Return the same recording in another folder."""
    return replace(whole, folder=whole.folder.parent / name)


@pytest.mark.parametrize("stage", ["write_paths", "read_paths", "features"])
def test_an_interrupted_recording_goes_on(other: Family, whole: Recording, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Killed in the third of four shards, wherever that is: the two finished ones stay as they are, and the whole is the same."""
    made, calls = beside(whole, stage), 0
    function = getattr(recording, stage)

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > {"features": 2}.get(stage, 4):
            raise KeyboardInterrupt
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(recording, stage, killed)
        with pytest.raises(KeyboardInterrupt):
            record(other, made)
    finished = shards(made)
    assert set(finished) == {"shard-00000", "shard-00001"}
    assert not made.finished
    done: list[int] = []
    record(other, made, progress=done.append)
    assert {name: stat for name, stat in shards(made).items() if name in finished} == finished
    assert (made.finished, done) == (True, [3, 6, 9, 11])
    assert contents(made.folder) == contents(whole.folder)


def test_a_shard_appears_only_when_it_is_whole(other: Family, whole: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while a shard is written, nothing goes by its name; what was begun does not stay for ever."""
    made = beside(whole, "half")
    save = datasets.Dataset.save_to_disk

    def killed(self: datasets.Dataset, path: str) -> None:
        save(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", killed)
        with pytest.raises(KeyboardInterrupt):
            record(other, made)
    assert not (made.folder / "shard-00000").exists()
    record(other, made)
    assert rows(made) == rows(whole)
    assert sorted(path.name for path in made.folder.iterdir()) == [*sorted(shards(made)), "traces.json"]


def test_two_processes_may_be_given_the_same_work(other: Family, whole: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins while another is beginning, and one that finds its shard written meanwhile, go on; no rubbish stays."""
    made = beside(whole, "same")
    made.folder.mkdir()
    (made.folder / "traces.json.123.tmp").touch()
    save = datasets.Dataset.save_to_disk

    def overtaken(self: datasets.Dataset, path: str) -> None:
        save(self, path)
        save(self, str(made.folder / Path(path).name.partition(".")[0]))

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", overtaken)
        record(other, made)
    assert rows(made) == rows(whole)
    assert not list(made.folder.glob("*unfinished*"))


def test_processes_share_the_shards(other: Family, whole: Recording) -> None:
    """Three processes write every third shard each, in any order; the files are those of one process to the last bit."""
    made = beside(whole, "shared")
    for shard, expected in ((2, {2}), (0, {0, 2, 3}), (1, {0, 1, 2, 3})):
        record(other, made, shard, num_shards=3)
        assert set(shards(made)) == {f"shard-{number:05d}" for number in expected}
        assert made.finished == (len(expected) == 4)
    assert contents(made.folder) == contents(whole.folder)


def test_processes_work_at_once(other_folder: Path, tmp_path: Path) -> None:
    """As SLURM or torchrun starts them: two commands that each take every second shard write the files of one command."""
    to_record(tmp_path / "any")  # writes the prompts
    students = f"{{tiny: {{path: {other_folder}/tiny}}, twin: {{path: {other_folder}/twin}}}}"
    argv = [f"--family.target.path={other_folder}/target", f"--family.students={students}", f"--prompts.source={tmp_path}/prompts.txt"]
    argv += ["--part=validation", "--num_prompts=11", "--recording.shard_size=3", "--recording.batch_size=2", "--prompts.max_new_tokens=20"]
    command = [sys.executable, "-m", "dispatch_rl.record", *argv, f"--output={tmp_path}/shared", "--num_shards=2"]
    processes = [subprocess.Popen([*command, f"--shard={shard}"], cwd=ROOT) for shard in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    record_command([*argv, f"--output={tmp_path}/alone"])
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_other_settings_are_not_mixed_in(other: Family, pocket: Family, whole: Recording, tmp_path: Path) -> None:
    """A folder belongs to one family, one sampling, one part, one set of prompts and one layout; what is there stays as it is."""
    before, config = shards(whole), whole.config
    longer = replace(config, prompts=replace(config.prompts, max_new_tokens=21))
    hotter = replace(config, sampling=replace(config.sampling, temperature=1.1))
    for family, changed, message in (
        (pocket, whole, "holds a recording of another family or with other settings"),
        (replace(other, students={"tiny": other.students["tiny"]}), whole, "of another family or with other settings"),
        (other, replace(whole, config=longer), "of another family or with other settings"),
        (other, replace(whole, config=hotter), "of another family or with other settings"),
        (other, replace(whole, part="test"), "of another family or with other settings"),
        (other, replace(whole, seed=1), "of another family or with other settings"),
        (other, replace(whole, num_prompts=12), "was begun with num_prompts 11, not 12"),
        (other, replace(whole, settings=replace(SETTINGS, shard_size=4)), "was begun with shard_size 3, not 4"),
        (other, replace(whole, settings=replace(SETTINGS, max_draft_length=7)), "was begun with max_draft_length 6, not 7"),
    ):
        with pytest.raises(UserError) as caught:
            record(family, changed)
        assert str(caught.value).startswith(f"output: {whole.folder} ")
        assert message in str(caught.value)
        assert str(caught.value).endswith("; choose another folder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="mine is not empty and holds no recording; choose another folder"):
        record(other, replace(whole, folder=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert shards(whole) == before


def test_rejection_sampling_cannot_be_recorded(other: Family, tmp_path: Path) -> None:
    """Its text depends on the drafts; at temperature zero there is none."""
    made = to_record(tmp_path / "traces", sampling=Sampling(0.5, method="rejection"), num_prompts=1)
    with pytest.raises(UserError, match=r"sampling.method: with rejection sampling the text depends on the drafts"):
        record(other, made)
    assert not made.folder.exists()
    record(other, to_record(tmp_path / "traces", sampling=Sampling(0.0, method="rejection"), num_prompts=1))


@pytest.mark.parametrize("change", ["one batch", "no noise kept", "few texts read at once", "never crowded"])
def test_what_is_only_fast_changes_nothing(other: Family, whole: Recording, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """How texts are batched, whether noise is kept, how many a student reads at once: the tokens and matches are the same."""
    made, settings = beside(whole, change), replace(SETTINGS, batch_size=32 if change == "one batch" else 2)
    if change == "never crowded":
        monkeypatch.setattr(paths, "_CROWDED", 0.0)
    elif change != "one batch":
        monkeypatch.setattr(paths, {"no noise kept": "_NOISE_BYTES"}.get(change, "_LOGITS_BYTES"), 0)
    record(other, replace(made, settings=settings))
    ours, theirs = load_traces(made.folder), load_traces(whole.folder)
    for name in ("path", "match_tiny", "match_twin", "lookup_accepted"):
        assert ours.table.column(name).to_pylist() == theirs.table.column(name).to_pylist(), name
    for name, values in theirs.floats.items():
        np.testing.assert_allclose(ours.floats[name], values, rtol=0, atol=2e-4, err_msg=name)
    assert any(any(row) and not all(row) for row in theirs.table.column("match_tiny").to_pylist())


def test_lookup_columns_are_what_a_session_does(pocket: Family) -> None:
    """Match, draft and hits of prompt lookup wherever a session uses it, on prompts and texts that repeat themselves."""
    rng, met = Random(0), set()
    for prompt in islice(prompts(PromptConfig(kinds=["reasoning", "code"]), pocket, "train", 0), 8):
        sampling = prompt.sampling(Sampling(rng.choice([0.0, 0.6])))
        session = DecodingSession(pocket, prompt.tokens, sampling, 48)
        seen = []
        while not session.finished:
            match, position, room = session.observation()[5], len(session.text_tokens), session.room
            round_ = session.step(Arm(LOOKUP, 6) if room and rng.random() < 0.7 else Arm(NONE))
            seen.append((match, position, room, round_))
        columns = lookup_columns(prompt.tokens, session.text_tokens, max_draft_length=6)
        assert [len(values) for values in columns.values()] == [48] * 3
        for match, position, room, round_ in seen:
            recorded, drafted, accepted = (columns[name][position] for name in ("lookup_match", "lookup_drafted", "lookup_accepted"))
            assert recorded == match
            if round_.arm != NONE:
                assert len(round_.drafted) == min(drafted, room)
                assert round_.num_accepted == min(accepted, room)
                assert accepted <= 48 - position
                met.add((min(drafted, 6), min(accepted, 2), accepted == 48 - position))
    assert met >= {(0, 0, False), (6, 0, False), (6, 1, False), (6, 2, False), (6, 2, True)}


def test_one_shard_is_in_memory(other: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are drawn shard by shard, and of finished shards neither prompts nor rows are kept."""
    drawn, alive, seen = 0, weakref.WeakSet[Prompt](), []
    tables: list[weakref.ref[pa.Table]] = []
    write = collector._write_shard

    def counted(*arguments: Any) -> Iterator[Prompt]:
        nonlocal drawn
        for prompt in prompts(*arguments):
            drawn += 1
            alive.add(prompt)
            yield prompt

    def watched(folder: Path, table: pa.Table) -> None:
        seen.append((drawn, len(alive), sum(reference() is not None for reference in tables)))
        tables.append(weakref.ref(table))
        write(folder, table)

    monkeypatch.setattr(collector, "prompts", counted)
    monkeypatch.setattr(collector, "_write_shard", watched)
    made = to_record(tmp_path / "traces", num_prompts=11)
    record(other, made)
    assert [drawn for drawn, *_ in seen] == [3, 6, 9, 11]
    assert max(prompts_alive for _, prompts_alive, _ in seen) <= 4
    assert max(tables_alive for *_, tables_alive in seen) <= 1
